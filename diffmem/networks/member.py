"""What every network says of itself: settings, what two of them get wrong together, cost, build."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Self

from pydantic import Field, ModelWrapValidatorHandler, field_validator, model_validator
from pydantic_core import PydanticKnownError

from diffmem.settings import MOST, Settings

if TYPE_CHECKING:
    from torch import Tensor

    from diffmem.networks.network import DenoiserFunction, Network


class Fault(NamedTuple):
    """One thing that two or more settings get wrong together; the first key is the one to change."""

    keys: tuple[str, ...]
    message: str


class Work(NamedTuple):
    """What a network is made of, and what it does with one image at one noise level."""

    parameters: int  # that are trained
    forward: int  # floating-point operations of one forward pass


class ModelConfiguration(Settings, ABC):
    """M: the network, its preconditioning and its conditioning (Gu et al. 2023, Section 4 and Appendix B)."""

    trained: ClassVar[bool]
    """Whether it is trained, as a `TrainedModel` is and an `UntrainedModel` is not."""
    compiles: ClassVar[bool]
    """Whether torch.compile may compile it."""
    refusal: ClassVar[str] = ""
    """Why it is not built from settings alone, and what to do instead; empty if it is."""
    PAPER: ClassVar[Mapping[str, str]] = {}
    """Where in Gu et al. 2023 its own keys are varied or defined."""

    network: str = Field("ddpm++", description="The network.")
    condition: Literal["none", "true", "random", "unique"] = Field(
        "none", description="Labels: none, the true classes, random ones, or one per training image."
    )
    labels: int | None = Field(
        None,
        ge=1,
        le=MOST,
        description="C, the number of random labels; needed with condition = random, else without effect.",
    )

    if TYPE_CHECKING:  # the keys depend on the network

        def __init__(self, **settings: Any) -> None: ...

    def __new__(cls, *_: Any, **settings: Any) -> "ModelConfiguration":
        """Give settings of the network that is named: of its own class, with its own keys."""
        chosen = member(settings.get("network")) if cls is ModelConfiguration else cls
        if chosen is ModelConfiguration:
            cls.model_validate(settings)  # which says what networks there are
        return super().__new__(chosen)

    @model_validator(mode="wrap")
    @classmethod
    def _of_its_member(cls, settings: Any, check: ModelWrapValidatorHandler[Self]) -> Any:
        """Check settings as those of the member that they name; of an unknown one, that name alone."""
        if cls is not ModelConfiguration or not isinstance(settings, Mapping):
            return check(settings)
        chosen = member(settings.get("network"))
        return check({"network": settings["network"]}) if chosen is ModelConfiguration else chosen(**settings)

    @field_validator("network", mode="before")
    @classmethod
    def _is_known(cls, network: Any) -> Any:
        if cls is ModelConfiguration:
            *names, last = map(repr, _members())
            unknown = PydanticKnownError("literal_error", {"expected": f"{', '.join(names)} or {last}"})
            raise unknown  # in the words that pydantic has for the names of a Literal
        return network

    @property
    def labels_if_random(self) -> int | None:
        """Return the number of random labels; None if labels are not random."""
        return self.labels if self.condition == "random" else None

    def resolved(self, resolution: int) -> Self:
        """Return the same model with every default that depends on `resolution` (pixels) written out."""
        return self.model_copy(update={"labels": self.labels_if_random})

    def faults(self, resolution: int) -> list[Fault]:
        """Return what its settings get wrong together, or with images of `resolution` pixels a side."""
        return []

    @abstractmethod
    def work(self, *, resolution: int, channels: int, labels: int, size: int) -> Work:
        """Return what it costs on images [channels, resolution, resolution], with so many labels (0: none) and training
        images."""


class TrainedModel(ModelConfiguration):
    """M of a network that is trained: F, inside a preconditioning."""

    trained = True
    compiles = True

    precondition: Literal["vp", "ve", "edm"] = Field(
        "vp", description="How network and noise are scaled, and how noise levels are drawn in training."
    )

    @abstractmethod
    def build(self, *, resolution: int, channels: int, labels: int = 0, seed: int = 0) -> "Network":
        """Return F for images [channels, resolution, resolution] and so many labels (0: none), with weights drawn from
        `seed`."""

    def is_small(self, *, resolution: int, batch: int) -> bool:
        """Return whether one CPU thread trains it best, as its layers are small on a batch of images."""
        return False


class UntrainedModel(ModelConfiguration):
    """M of a denoiser that is known at once from the training images.

    It leaves out the keys of networks that are trained, so that a study can cross both.
    """

    trained = False
    compiles = False

    @model_validator(mode="before")
    @classmethod
    def _without_others(cls, settings: Any) -> Any:
        if not isinstance(settings, Mapping):
            return settings
        others = {key for each in _members().values() for key in each.model_fields} - cls.model_fields.keys()
        return {key: value for key, value in settings.items() if key not in others}

    @abstractmethod
    def from_images(self, images: "Tensor", labels: "Tensor | None", *, count: int) -> "DenoiserFunction":
        """Return the denoiser of training images [N, c, h, w] in -1..1 and their labels [N], of which there are `count`
        (0: none); RunError if they have none."""


def member(name: object) -> type[ModelConfiguration]:
    """Return the network of a name, the first one without a name, and ModelConfiguration itself if there is none."""
    members = _members()
    if name is None:
        return next(iter(members.values()))
    found = members.get(name) if isinstance(name, str) else None
    return ModelConfiguration if found is None else found


def _members() -> dict[str, type[ModelConfiguration]]:
    from diffmem.networks.members import MEMBERS  # which are subclasses of what is above

    return MEMBERS
