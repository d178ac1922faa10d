"""Settings that the verbs share that run a model over a collection of images."""

from typing import Literal

from pydantic import Field, field_validator, model_validator
from pydantic_settings import CliPositionalArg

from segray.address import Address
from segray.scenes.scene import Tiling
from segray.settings import SceneSettings, WeightsAddress
from segray.sources.name_filter import Choice
from segray.tile_overlap import OVERLAP, TILE


class BulkSettings(SceneSettings):
    """Settings of the verbs that run a model over a collection of images."""

    usage = "SOURCE... --output URL"

    sources: CliPositionalArg[list[Address]] = Field(
        default=[],
        validate_default=True,
        min_length=1,
        description="folders, files, globs, archives, manifests (also as `sources` in the YAML)",
    )
    output: Address = Field(description="folder or bucket URL of the output")
    weights: WeightsAddress
    include: list[str] = Field(
        [],
        description="globs: use only images that match one; `*.jpg` is compared with each "
        "name of a path, `left/*.jpg` with its end (repeatable)",
    )
    exclude: list[str] = Field(
        [], description="globs: leave out what matches, as in `include`: `*_mask.png`, `thumbs` (repeatable)"
    )
    keep_columns: list[str] = Field(
        [],
        description="columns of a manifest to copy to `images`, as text: `camera,region`; "
        "for `--group-by` of other verbs",
    )
    asset: str | None = Field(
        None, description="asset of STAC Items to use, by its key; default the visual one, else the data"
    )
    max_rejects: float = Field(0.0, ge=0, le=1, description="exit 3 when a larger share of items is rejected")
    retry_rejected: bool = Field(False, description="try items again that an earlier run rejected")
    max_pixels: int = Field(
        100_000_000, ge=1, description="reject larger images (height x width); scenes may have any size"
    )
    tile: int = Field(TILE, ge=64, description="side of the square windows a scene is processed in, pixels")
    overlap: int = Field(OVERLAP, ge=0, description="pixels that neighbouring windows share; below tile")
    tile_above: int = Field(
        40_000_000, ge=1, description="images with more pixels (height x width) are processed in windows, too"
    )
    location: bool = Field(
        True, description="`--no-location`: neither read nor write where and when an image was taken"
    )
    crs: str = Field("OGC:CRS84", description="CRS of the outlines in the output, one per run")
    decode_timeout_s: float = Field(30.0, gt=0, description="maximum seconds to decode an image")
    max_file_mib: int = Field(1024, ge=1, description="reject larger encoded files")
    batch_size: int | None = Field(None, ge=1, description="images per model call: 8 on a GPU, 1 on a CPU")
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where the model runs")
    precision: Literal["auto", "fp32", "bf16", "fp16"] = Field(
        "auto", description="auto: bf16 where the device is fast at it"
    )
    actors: int | None = Field(None, ge=1, description="maximum model actors; default all that fit")
    min_actors: int = Field(1, ge=1, description="minimum model actors; the pool grows from this")
    gpus_per_actor: float = Field(1.0, gt=0, description="0.5 puts two actors on a GPU")
    cpus_per_actor: float | None = Field(None, gt=0, description="CPUs an actor reserves and uses")
    readers: int | None = Field(
        None, ge=1, description="maximum archives or runs of files read at a time; default by CPUs"
    )
    decoders: int | None = Field(None, ge=1, description="maximum decoding processes; default by CPUs")
    commit_every_s: float = Field(10.0, ge=0, description="seconds between commits of results")

    @property
    def choice(self) -> Choice:
        """Return which names in the sources are used."""
        return Choice(tuple(self.include), tuple(self.exclude), stac=True, asset=self.asset)

    @property
    def tiling(self) -> Tiling:
        """Return how scenes are cut and read."""
        how = self.band_numbers, self.resolution, self.scaling
        return Tiling(self.tile, self.overlap, *how, self.tile_above, location=self.location)

    @field_validator("keep_columns")
    @classmethod
    def _new_columns(cls, names: list[str]) -> list[str]:
        if names:
            from segray.schema import ANNOTATED, TILES

            ours = {*ANNOTATED.names, *TILES.names}
            for name in names:
                if not name.strip():
                    raise ValueError("a name is empty")
                if name.lower() in ours:  # DuckDB and Spark ignore case in names
                    raise ValueError(f"{name} is a column of the ledger itself; rename it in the manifest")
            if len({name.lower() for name in names}) < len(names):
                raise ValueError("a name occurs twice")
        return names

    @field_validator("crs")
    @classmethod
    def _known_crs(cls, value: str) -> str:
        if value != "OGC:CRS84":  # pyproj is not loaded for the usual one
            from pyproj import CRS
            from pyproj.exceptions import CRSError

            try:
                CRS.from_user_input(value)
            except CRSError as error:
                raise ValueError(f"no coordinate reference system that PROJ knows: {value}") from error
        return value

    @field_validator("gpus_per_actor")
    @classmethod
    def _share_or_whole(cls, value: float) -> float:
        if value > 1 and not value.is_integer():
            raise ValueError("must be a share of one GPU, or a whole number")
        return value

    @model_validator(mode="after")
    def _fewest_and_most(self) -> "BulkSettings":
        if self.actors is not None and self.min_actors > self.actors:
            raise ValueError(f"min_actors ({self.min_actors}) is above actors ({self.actors})")
        if self.overlap >= self.tile:
            raise ValueError(f"overlap ({self.overlap}) must be below tile ({self.tile})")
        return self
