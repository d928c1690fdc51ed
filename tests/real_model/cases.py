"""The prompts of the tests on the real model: 20 prompts, conversations of several turns, and a document with questions.

golden.json has the expected answers. After a change here, make_golden.py must make it again.
"""
LOG = "\n".join(f"{hour:02}:{minute:02} station {7 * hour % 9 + 1}: wind {(hour * 5 + minute) % 23} km/h, "
                f"{'rain' if (hour + minute) % 4 == 0 else 'dry'}, {12 + (hour * minute) % 9} degrees"
                for hour in range(6, 18) for minute in (0, 20, 40))
STORY = """The lighthouse keeper had not spoken to anyone for eleven days when the boat came. It was a small boat, painted green, and \
it carried three sacks of flour, a barrel of lamp oil and a girl of about nine years who was sitting on the barrel.

"My uncle says you need someone who can read," she said, before the boat had touched the stones. "I can read. I can also count to a \
thousand, but that takes a while and he says people get tired of it."

The keeper looked at the boatman. The boatman looked at the sea.

Nobody had told him about a girl. There had been a letter, in spring, with the seal of the harbour office on it, and he had put it \
under the foot of the table that was too short, where it had done good service ever since. He thought now that he should perhaps have asked \
somebody what was in it. His eyes had been bad for six years. The lamp he could tend by touch, and the ships were far away anyway; \
but letters were small and close, and he had told no one.

"Can you cook?" he asked.

"No," said the girl. "Can you?"

He considered this. "No," he said.

"Then we will both be hungry," said the girl, "but we will know what is in the newspaper." And she climbed over the side with her \
shoes in her hand, walked up the wet stairs as if she had lived there always, and stopped in the door of the tower."""

PROSE = {
    "story": "Once upon a time, in a village at the foot of a mountain, there lived a clockmaker who",
    "letter": "Dear Sir or Madam,\n\nI am writing to",
    "science": "Photosynthesis is the process by which plants turn light into chemical energy. In the first stage, the light-dependent "
               "reactions, chlorophyll absorbs light and",
    "lighthouse": STORY + "\n\nInside it was",
    "news": "LONDON, 14 March 1897 - The price of coal rose by 3.5% yesterday after the strike in Wales entered its 21st day.\n\n"
            "\"We did not expect this,\" said Mr. O'Neill, who owns\tthree mines.  He added that",
}
CODE = {
    "python": "def fibonacci(n):\n    \"\"\"Returns the n-th Fibonacci number.\"\"\"\n    if n < 2:\n        return n\n",
    "class": "class Stack:\n    def __init__(self):\n        self.items = []\n\n    def push(self, item):\n        self.items.append(item)\n\n"
             "    def pop(self):\n",
    "c": "#include <stdio.h>\n\nint main(void) {\n\tfor (int i = 0; i < 10; ++i) {\n\t\t",
    "html": "<!DOCTYPE html>\n<html>\n  <head>\n    <title>Shopping list</title>\n  </head>\n  <body>\n    <ul>\n      <li>Milk</li>\n",
    "sql": "-- Customers who ordered more than 3 times in 2024\nSELECT c.name, COUNT(*) AS orders\nFROM customers c\n",
}
LISTS = {
    "planets": "The planets of the solar system, in order of their distance from the sun:\n\n1. Mercury\n2. Venus\n3.",
    "recipe": "Ingredients for pancakes:\n\n- 200 g flour\n- 2 eggs\n-",
    "table": "| country | capital | inhabitants |\n|---|---|---|\n| France | Paris | 68,000,000 |\n| Italy | Rome | 59,000,000 |\n|",
    "log": "Weather log of the station\n\n" + LOG + "\n",
    "json": "{\n  \"name\": \"Ada\",\n  \"languages\": [\"English\", \"Français\", \"日本語\"],\n  \"born\": 1815,\n",
}
CHAT = {
    "capital": "What is the capital of France? Name two sights there.",
    "haiku": "Write a haiku about the sea.",
    "rewrite": "Make this sentence polite:\n\nGive me the report now!",
    "sum": "A train has 12 cars with 48 seats each. 100 seats are taken.\n\n  - How many seats are free?\n  - Explain in one sentence.",
    "summary": STORY + "\n\nWho came with the boat, and why? Answer in one sentence. 🚢",
}

# The user's turns. The answers between them are the model's.
CONVERSATIONS = {
    "garden": ["I have a small garden with much shade. Which three plants would you grow?",
               "Which of them needs the most water?", "Thank you!\n\nWrite one sentence about it for my neighbour."],
    "station": ["This is the weather log of a station.\n\n" + LOG, "How strong was the wind at 09:20?", "And twenty minutes later?"],
}
# A document for a context, with questions about it: as messages, and as texts that continue in the middle of a word or line.
CONTEXT_MESSAGE = "Please read this story.\n\n" + STORY
CONTEXT_QUESTIONS = ["How old is the girl?", "What did the keeper do with the letter?\n\nWhat does that say about him?"]
CONTEXT_TEXT = STORY + " It smelled of lamp o"
CONTEXT_ENDINGS = ["il and bread, and", "ld wood.\n\n\"Where do I sleep?\" asked the girl"]
