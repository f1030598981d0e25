"""The space of cells: its size, its sameness, and that everything in it builds a network."""

import math

import pytest
import torch

from paperworks.backbones.genotype import NASNET_A
from paperworks.backbones.nasnet import NASNet
from paperworks.errors import InputError
from paperworks.search.cell_space import CellSpace
from paperworks.search.space import Choice, Space


def test_its_size_is_the_papers():
    assert math.log10(CellSpace().size()) / 2 == pytest.approx(18.359248, abs=1e-6)


def test_the_published_cells_are_in_it_but_for_their_lists():
    space = CellSpace()
    found = space.genotype(space.arch(NASNET_A))
    assert found.normal.blocks == NASNET_A.normal.blocks and found.reduction.blocks == NASNET_A.reduction.blocks
    assert found.normal.concat == NASNET_A.normal.unread()
    assert len(space.chosen(space.arch(NASNET_A))) == 50


def test_exchanged_branches_and_blocks_are_one_network():
    space = CellSpace(3, ("identity", "conv_1x1"), ("add",))
    one = (0, 1, 0, 1, 0, 1, 1, 0, 0, 0, 2, 3, 1, 0, 0)
    same = (1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 2, 3, 0, 1, 0)  # blocks 0 and 1 exchanged, branches too
    other = (1, 1, 0, 0, 0, 1, 0, 1, 0, 0, 2, 3, 1, 0, 0)
    assert space.canonical(one * 2) == space.canonical(same * 2) != space.canonical(other * 2)


def test_canonical_is_a_representative_and_computes_the_same_shapes():
    space, generator = CellSpace(4), torch.Generator().manual_seed(0)
    x = torch.rand(1, 3, 16, 16)
    for _ in range(8):
        arch = space.sample(generator)
        canonical = space.canonical(arch)
        assert space.canonical(canonical) == canonical == space.check(canonical)
        networks = []
        for each in (arch, canonical):
            plain = space.genotype(each).to_plain()
            networks.append(NASNet(plain, num_cells=2, reductions=1, filters=2, stem="cifar", num_classes=3).eval())
        counts = [sorted(tuple(p.shape) for p in network.parameters()) for network in networks]
        assert counts[0] == counts[1]
        with torch.no_grad():
            assert networks[0](x).shape == (1, 3)


def test_what_does_not_fit_is_named():
    space = CellSpace(2)
    with pytest.raises(InputError, match=r"normal\.0\.left: no option 2"):
        space.check((2, *(0,) * 19))
    with pytest.raises(InputError, match="7 decisions; the space has 20"):
        space.check((0,) * 7)
    with pytest.raises(InputError, match="a cell of 5 blocks in a space of cells with 2"):
        space.arch(NASNET_A)
    with pytest.raises(InputError, match="'sep_conv_5x5' is not in this space"):
        CellSpace(5, ("identity",)).arch(NASNET_A)
    with pytest.raises(InputError, match="has no options"):
        Choice("a", (), "a")
    with pytest.raises(InputError, match="a name of its own"):
        Space([Choice("a", (1,), "a"), Choice("a", (1,), "a")])
