"""The sections of a recipe: what may stand in them, checked one by one. Needs the extra ``startsparse[train]``."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import torch
from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from startsparse.execution.choice import EXECUTIONS
from startsparse.names import nearest
from startsparse.training import data as data_sets
from startsparse.training.names import find

Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """Base of all sections: nothing unknown, nothing coerced, nothing changed afterwards."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


def _from_bare_name(value: Any) -> Any:
    """A bare name stands for itself without options."""
    return {"name": value} if isinstance(value, str) else value


class Named(BaseModel):
    """A choice by name, and its options as plain data; a bare name stands for itself without options."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)
    name: str

    _bare_name = model_validator(mode="before")(_from_bare_name)

    @property
    def options(self) -> dict[str, Any]:
        """Everything but the name."""
        return dict(self.model_extra or {})


class Data(Section):
    """Which examples, and how they are served. ``validation`` is a share or a number of training examples."""

    name: str
    root: str | None = None
    validation: float | int = 0.1
    batch_size: Positive = 128
    augment: str | None = None
    size: Positive | None = None
    context: Positive | None = None
    label: str | None = None

    _bare_name = model_validator(mode="before")(_from_bare_name)

    @property
    def options(self) -> data_sets.Options:
        """What is asked of the data set besides its name."""
        return data_sets.Options(self.size, self.context, self.label)

    def entry(self) -> data_sets.Entry:
        """What is known of the data set; a file that its name points at is looked into."""
        return data_sets.describe(self.name, self.root, self.options)

    @field_validator("name")
    @classmethod
    def _known(cls, value: str) -> str:
        if not value.startswith(tuple(data_sets.KINDS)):
            find("data set", value, data_sets.TABLE)
        return value

    @field_validator("augment")
    @classmethod
    def _known_augment(cls, value: str | None) -> str | None:
        if value is not None:
            find("augmentation", value, data_sets.AUGMENTS)
        return value

    @model_validator(mode="after")
    def _fits_the_data(self) -> Data:
        try:
            entry = self.entry()
        except (ValueError, OSError, ImportError) as error:
            named = str(error).partition(":")[0] in ("size", "context", "label")
            raise ValueError(str(error) if named else f"name: {error}") from error
        try:
            data_sets.num_held_out(entry.examples, self.validation)
        except ValueError as error:
            raise ValueError(f"validation: {error}") from error
        if self.augment is not None and len(entry.shape) != 3:
            raise ValueError(
                f"augment: {self.augment} is for images, {self.name} has inputs of shape {entry.shape}"
            )
        return self


class Train(Section):
    """How long, and how a step is made. Exactly one of ``epochs`` and ``steps``."""

    epochs: Positive | None = None
    steps: Positive | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: Annotated[float, Field(gt=0)] | None = None
    accumulate: Positive = 1
    amp: Literal["none", "bf16", "fp16"] = "none"
    device: str = "auto"
    execution: str = "masked"
    log_every: Positive = 50
    checkpoint_every: Positive | None = None

    @field_validator("device")
    @classmethod
    def _device_exists(cls, value: str) -> str:
        if value != "auto":
            try:
                torch.device(value)
            except RuntimeError as error:
                raise ValueError(f"no such device: {value!r} (auto, cpu, cuda, cuda:0, ...)") from error
        return value

    @field_validator("execution")
    @classmethod
    def _known_execution(cls, value: str) -> str:
        if value not in EXECUTIONS:
            raise ValueError(f"unknown execution {value!r}: {nearest(value, EXECUTIONS)}")
        return value

    @model_validator(mode="after")
    def _one_length(self) -> Train:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("give exactly one of epochs and steps")
        return self
