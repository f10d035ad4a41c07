"""Strict records: what a document or a package's file must look like."""

from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from hvlc.errors import UserError, nearest

_NAMED = 12  # of many problems, in the text
_LONGEST = 400  # characters of a problem; keys may be as long as the file


class StrictModel(BaseModel):
    """A frozen record that refuses unknown keys, NaN and infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @classmethod
    def parse(cls, data: Any, source: str) -> Self:
        """Validate `data`, naming `source` and the nearest known key in every complaint.

        Raises:
            UserError: "spec.invalid", with all problems at once.
        """
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            found = error.errors(include_url=False, include_input=False)
            problems = [_clipped(_explain(cls, problem)) for problem in found[:_NAMED]]
            problems += [f"and {len(found) - _NAMED} more"] if len(found) > _NAMED else []
            raise UserError("spec.invalid", f"{source}: " + "; ".join(problems), "correct the file") from error


def _clipped(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[: _LONGEST // 2]}…{text[-_LONGEST // 2 :]}"


def _explain(model: type[BaseModel], problem: Any) -> str:
    """One validation problem as `path: what is wrong`."""
    path = ".".join(str(part) for part in problem["loc"])
    if problem["type"] != "extra_forbidden":
        return f"{path or 'file'}: {problem['msg']}"
    known = _fields_at(model, problem["loc"][:-1])
    return f"{path}: unknown key, {nearest(str(problem['loc'][-1]), known)}"


def _fields_at(model: type[BaseModel], path: tuple[Any, ...]) -> list[str]:
    """Field names of the nested model that `path` leads to."""
    for part in path:
        if not isinstance(part, str) or part not in model.model_fields:
            continue
        candidates = [model.model_fields[part].annotation]
        while candidates:
            candidate = candidates.pop()
            if isinstance(candidate, type) and issubclass(candidate, BaseModel):
                model = candidate
                break
            candidates.extend(getattr(candidate, "__args__", ()))
    return list(model.model_fields)
