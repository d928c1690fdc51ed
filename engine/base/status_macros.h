// Returns early on errors, in functions that return absl::Status or absl::StatusOr.
#pragma once

#include "absl/status/status.h"
#include "absl/status/statusor.h"

#define APB_RETURN_IF_ERROR(expression)                                                 \
  do {                                                                                  \
    if (absl::Status apb_status_ = (expression); !apb_status_.ok()) return apb_status_; \
  } while (false)

#define APB_STATUS_CONCAT_INNER(a, b) a##b
#define APB_STATUS_CONCAT(a, b) APB_STATUS_CONCAT_INNER(a, b)

// APB_ASSIGN_OR_RETURN(auto x, F()): x = *F(), or returns its status.
#define APB_ASSIGN_OR_RETURN(target, expression) \
  APB_ASSIGN_OR_RETURN_IMPL(APB_STATUS_CONCAT(apb_status_or_, __LINE__), target, expression)
#define APB_ASSIGN_OR_RETURN_IMPL(result, target, expression) \
  auto result = (expression);                                 \
  if (!result.ok()) return std::move(result).status();        \
  target = *std::move(result)
