// Goal: no chat template crashes the parser or the renderer. Method: an input is a checkpoint's
// chat template and, after a zero byte, messages as JSON. Property: the segments of a rendered
// prompt add up to its text.
#include "server/text/chat_template.h"
#include "tests/fuzz/fuzz_target.h"

namespace apb::fuzz {

std::vector<std::string> Seeds() {
  const std::string end(1, '\0');
  const std::string messages = R"([{"role":"system","content":"s"},{"role":"user","content":"a"},)"
                               R"({"role":"x","content":null}])";
  return {
      "{% for m in messages %}<|{{ m.role }}|>\n{{ m.content | trim }}\n{% endfor %}" + end +
          messages,
      "{%- set ns = namespace(n=0) -%}{%- for m in messages -%}{%- if m['role'] == 'user' and not "
      "loop.last -%}{%- set ns.n = ns.n + 1 -%}[{{ loop.index0 }}]{%- else -%}{{ m | tojson }}"
      "{%- endif -%}{%- endfor -%}{{ ns.n }}" +
          end + messages,
      "{% macro f(x, y=1) %}{{ x ~ y }}{% endmacro %}{{ f(messages[0].content[::-1]) }}"
      "{{ messages | map(attribute='role') | join(',') }}{{ 2 ** 3 // 2 % 3 }}" +
          end + messages,
  };
}

bool Accepts(std::string_view input) {
  const size_t end = input.find('\0');
  const auto made = text::ChatTemplate::Parse(input.substr(0, end));
  if (!made.ok()) {
    APB_PROPERTY(absl::IsInvalidArgument(made.status()) || absl::IsUnimplemented(made.status()));
    return false;
  }
  const std::string_view json = end == input.npos ? "[]" : input.substr(end + 1);
  const text::Json messages = text::Json::parse(json, nullptr, /*allow_exceptions=*/false);
  if (messages.is_discarded()) return false;
  const auto prompt = (*made)->Render(messages, {});
  if (!prompt.ok()) return false;
  std::string joined;
  for (const text::PromptSegment& segment : prompt->Segments()) joined += segment.text;
  APB_PROPERTY(joined == prompt->text);
  for (const auto& turn : prompt->turns) {
    APB_PROPERTY(turn.range.begin <= turn.range.end && turn.range.end <= prompt->text.size());
  }
  return true;
}

}  // namespace apb::fuzz
