"""What `manifest.json` may say: the schema of a bundle."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, model_validator

SCHEMA_VERSION = 1
Task = Literal["detection", "segmentation"]
# How many distortion coefficients each lens model may come with.
COEFFICIENTS = {
    "plumb_bob": (0, 4, 5),
    "rational_polynomial": (0, 8, 12, 14),
    "equidistant": (0, 4),
}


class Spec(BaseModel):
    """Base of the manifest's parts: unknown keys and wrong types are errors."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class InputSpec(Spec):
    """The network's image: `height` x `width` pixels and how a raw image is fitted into it."""

    height: int = Field(gt=0, le=8192)
    width: int = Field(gt=0, le=8192)
    color: Literal["rgb"] = "rgb"
    dtype: Literal["uint8"] = "uint8"
    resize: Literal["stretch", "letterbox"] = "stretch"


class TensorSpec(Spec):
    """An input or output of the network; the shape is static."""

    name: str
    dtype: str
    shape: list[int]


class ClassSpec(Spec):
    """A class and the RGB colour it is drawn in."""

    name: str
    color: tuple[int, int, int]


class AdapterPointSpec(Spec):
    """A place in the network with a scale and a shift per channel."""

    name: str
    channels: int = Field(gt=0)


class StudentSpec(Spec):
    """What is needed to rebuild the network for training: trunk, head sizes, adapter layout."""

    trunk: str
    neck_width: int = Field(gt=0)
    head_width: int = Field(gt=0)
    head_depth: int = Field(ge=0)
    adapter: list[AdapterPointSpec]


class Provenance(Spec):
    """Where the weights come from."""

    teachers: list[str] = []
    teacher_licence: str | None = None
    data_digest: str | None = None
    recipe: dict[str, Any] = {}
    versions: dict[str, str] = {}
    git_commit: str | None = None


class CameraSpec(Spec):
    """Intrinsics of the camera whose lens perception should undistort.

    `K` is the 3x3 camera matrix row by row (9 values, pixels at `width` x `height`), `D` the
    distortion coefficients in OpenCV's order for `model` (names as in sensor_msgs/CameraInfo):
    k1 k2 p1 p2 k3 for a plumb bob, three to nine more for a rational polynomial, k1 to k4 for an
    equidistant (fisheye) lens. None at all mean a lens without distortion.
    """

    width: int = Field(gt=0)
    height: int = Field(gt=0)
    model: Literal["plumb_bob", "rational_polynomial", "equidistant"] = "plumb_bob"
    K: list[FiniteFloat] = Field(min_length=9, max_length=9)
    D: list[FiniteFloat]

    @model_validator(mode="after")
    def _is_a_camera(self) -> CameraSpec:
        if self.K[0] <= 0 or self.K[4] <= 0 or self.K[6:] != [0, 0, 1]:
            raise ValueError("K needs positive focal lengths and 0 0 1 as its last row")
        if len(self.D) not in (lengths := COEFFICIENTS[self.model]):
            wanted = " or ".join(map(str, lengths))
            raise ValueError(f"D has {len(self.D)} coefficients; {self.model} takes {wanted}")
        return self


class TensorRTSpec(Spec):
    """How TensorRT should build the bundle's networks; a robot's own options override it.

    Attributes:
        workspace_mib: Most scratch memory a layer may take while building and running.
        optimization_level: TensorRT's builder optimization level; higher builds longer.
        dla_core: Run on this deep learning accelerator where the network allows it.
        cuda_graph: Capture the inference in a CUDA graph, to launch it in one call.
    """

    workspace_mib: int = Field(default=1024, gt=0)
    optimization_level: int = Field(default=3, ge=0, le=5)
    dla_core: int | None = Field(default=None, ge=0, le=7)
    cuda_graph: bool = True


class FileSpec(Spec):
    """Checksum and size of one file of the bundle."""

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    bytes: int = Field(ge=0)


class Manifest(Spec):
    """`manifest.json`."""

    schema_version: Literal[1] = 1
    name: str
    created: str
    tasks: list[Task] = Field(min_length=1)
    input: InputSpec
    inputs: list[TensorSpec]
    outputs: list[TensorSpec]
    classes: dict[Task, list[ClassSpec]]
    ignore_index: int | None = None
    student: StudentSpec
    provenance: Provenance = Provenance()
    metrics: dict[str, Any] = {}
    camera: CameraSpec | None = None
    tensorrt: TensorRTSpec = TensorRTSpec()
    files: dict[str, FileSpec]

    @property
    def adapter_size(self) -> int:
        """Length A of the adapter and statistics vectors."""
        return 2 * sum(point.channels for point in self.student.adapter)
