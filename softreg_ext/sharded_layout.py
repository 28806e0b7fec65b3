"""Which rows and classes of a loss a process has, of a mesh of them."""

from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard

CLASSES = -1  # what a dimension of the mesh shares out, in the place of a dimension of the rows


@dataclass(frozen=True)
class Layout:
    """What each dimension of a mesh shares out: a dimension of the rows, the classes, or nothing.

    Rows have the shape of labels. At most one dimension shares out the classes.
    """

    mesh: DeviceMesh
    shared: tuple[int | None, ...]
    # the DTensors whose own memory local tensors are
    used: list[DTensor] = field(default_factory=list, compare=False)

    @property
    def shares_classes(self) -> bool:
        return CLASSES in self.shared

    def placements(
        self, rows: Callable[[int], Placement], classes: Placement
    ) -> tuple[Placement, ...]:
        """`rows` of a dimension, where that is shared out, `classes` where those are."""
        return tuple(
            Replicate() if dim is None else classes if dim == CLASSES else rows(dim)
            for dim in self.shared
        )

    @property
    def of_rows(self) -> tuple[Placement, ...]:
        return self.placements(Shard, Replicate())

    @property
    def of_sums(self) -> tuple[Placement, ...]:
        """Of what has been added up over the rows that a process has."""
        return self.placements(lambda _: Partial(), Replicate())

    @property
    def everywhere(self) -> tuple[Placement, ...]:
        return (Replicate(),) * self.mesh.ndim

    def local(
        self,
        x: Tensor,
        placements: tuple[Placement, ...],
        grad_placements: tuple[Placement, ...] | None = None,
    ) -> Tensor:
        """This process's part of `x`; a plain tensor is the same on all of them."""
        if not isinstance(x, DTensor):
            x = DTensor.from_local(x, self.mesh, self.everywhere, run_check=False)
        elif x.device_mesh != self.mesh:
            raise RuntimeError(
                f"cross_entropy: all DTensors must be on one mesh, but got {x.device_mesh} "
                f"beside {self.mesh}"
            )
        elif x.placements == placements:
            self.used.append(x)
        return x.redistribute(self.mesh, placements).to_local(grad_placements=grad_placements)

    def as_dtensor(self, rows: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The rows of all processes, left where they are."""
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(
            *(rows, self.mesh, self.of_rows),
            run_check=False,
            shape=shape,  # type: ignore[arg-type]  # no torch.Size of symbols
            stride=stride,
        )

    def sums(self, *of_rows: Tensor) -> tuple[Tensor, ...]:
        """Each over the rows of all processes, in float64."""
        here = torch.stack([x.sum(dtype=torch.float64) for x in of_rows])
        totals = DTensor.from_local(here, self.mesh, self.of_sums, run_check=False)
        return totals.redistribute(self.mesh, self.everywhere).unbind()


@dataclass(frozen=True)
class ClassShard:
    """The classes that a process has: `count` of them from `first` on, of `classes` in all."""

    layout: Layout
    classes: int
    share: int
    first: int
    count: int

    @classmethod
    def of(cls, layout: Layout, classes: int) -> "ClassShard":
        """Shares as DTensors are cut: alike, but for the last that have any."""
        mesh_dim = layout.shared.index(CLASSES)
        share = -(-classes // layout.mesh.size(mesh_dim))
        first = min(share * layout.mesh.get_local_rank(mesh_dim), classes)
        return cls(layout, classes, share, first, min(share, classes - first))

    def owner(self, labels: Tensor) -> Tensor:
        """Which process has each label's class; the first or the last for what is none."""
        return labels.clamp(0, self.classes - 1) // self.share

    def gathered(self, values: Tensor) -> Tensor:
        """Those of all processes that have classes of the same rows, one behind the other."""
        layout = self.layout
        stacked = Layout(layout.mesh, tuple(d if d == CLASSES else None for d in layout.shared))
        shards = DTensor.from_local(
            values[None], layout.mesh, stacked.placements(Shard, Shard(0)), run_check=False
        )
        return shards.redistribute(layout.mesh, layout.everywhere).to_local()
