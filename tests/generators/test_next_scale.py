"""VAR's transformer and its samplers."""

import pytest
import torch

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.next_scale import SCALES_256, SCALES_512, NextScaleTransformer
from paperworks.generators.next_scale_sampling import Edit, image_keep_mask, inpaint, keep_masks, rejection_sample, sample
from paperworks.papers.var import paper
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE

SCALES = (1, 2, 4)


@pytest.fixture
def tokenizer() -> MultiScaleVQVAE:
    torch.manual_seed(0)
    made = MultiScaleVQVAE(16, 4, 8, (1, 2), 1, SCALES, groups=4, in_channels=1).eval()
    torch.nn.init.normal_(made.quantize.embedding.weight)
    return made


def transformer(**changes) -> NextScaleTransformer:
    torch.manual_seed(1)
    arguments = {"num_classes": 3, "depth": 2, "embed_dim": 24, "num_heads": 3, "patch_nums": SCALES, "vocab_size": 16}
    model = NextScaleTransformer(**(arguments | {"code_channels": 4} | changes)).eval()
    for parameter in model.parameters():  # leave the near-identity start, so that attention matters
        torch.nn.init.normal_(parameter, std=0.2)
    return model


@pytest.mark.parametrize("name", list(paper.variants))
def test_published_sizes(name):
    variant = paper.variants[name]
    with torch.device("meta"):
        model = variant.build()
    assert sum(p.numel() for p in model.parameters()) / 1e6 == pytest.approx(variant.parameters, abs=0.01)


def test_published_lengths():
    assert sum(side * side for side in SCALES_256) == 680
    assert sum(side * side for side in SCALES_512) == 2240


@pytest.mark.parametrize("changes", [{}, {"shared_aln": True}, {"attn_l2_norm": False}])
def test_cached_sampling_sees_what_teacher_forcing_sees(tokenizer, changes):
    model, seen = transformer(**changes), []
    labels = torch.tensor([0, 2])
    drawn = sample(model, tokenizer, labels, Draws.seeded(0, 2), observe=lambda _, logits: seen.append(logits))
    inputs = tokenizer.quantize.next_inputs(drawn.indices)
    with torch.inference_mode():
        conditional, null = model(labels, inputs), model(torch.tensor([3, 3]), inputs)
    cached = torch.cat(seen, 1)
    assert torch.allclose(cached[:2], conditional, atol=1e-5)
    assert torch.allclose(cached[2:], null, atol=1e-5)


def test_a_scale_never_sees_later_ones(tokenizer):
    model = transformer()
    inputs = torch.randn(1, 20, 4)
    changed = inputs.clone()
    changed[:, 4:] += 1  # the last scale's inputs
    with torch.inference_mode():
        a, b = model(torch.tensor([0]), inputs), model(torch.tensor([0]), changed)
        prefix = model(torch.tensor([0]), inputs[:, :4])
    assert torch.equal(a[:, :5], b[:, :5]) and not torch.allclose(a[:, 5:], b[:, 5:])
    assert torch.allclose(prefix, a[:, :5], atol=1e-6)


def test_the_same_seed_gives_the_same_image_in_any_batch(tokenizer):
    model = transformer()
    together = sample(model, tokenizer, torch.tensor([0, 1, 2]), Draws.seeded(5, 3), top_p=0.9)
    alone = sample(model, tokenizer, torch.tensor([2]), Draws.seeded(5, 1, first=2), top_p=0.9)
    assert all(torch.equal(a[2:], b) for a, b in zip(together.indices, alone.indices))


def test_without_guidance_the_null_branch_does_not_run(tokenizer):
    rows = []
    sample(
        transformer(), tokenizer, torch.tensor([0, 1]), Draws.seeded(0, 2), guidance=0, observe=lambda _, x: rows.append(len(x))
    )
    assert rows == [2, 2, 2]


def test_smoothing_is_not_picking_and_needs_no_uniform_draws(tokenizer):
    shapes = {f"exponential_{k}": torch.ones(1, side * side, 16) for k, side in enumerate(SCALES)}
    smooth = sample(transformer(), tokenizer, torch.tensor([0]), Draws(recorded=shapes), smooth=True)
    picked = tokenizer.quantize.features_of(smooth.indices)[-1]
    assert not torch.allclose(smooth.features, picked, atol=1e-3)


def test_keeping_everything_gives_back_the_image_and_a_hole_changes_the_hole_only(tokenizer):
    model, images = transformer(), torch.rand(2, 1, 8, 8)
    indices = tokenizer.encode(images)
    everything = Edit(indices, keep_masks(torch.ones(4, 4), SCALES))
    kept = sample(model, tokenizer, torch.tensor([3, 3]), Draws.seeded(0, 2), edit=everything)
    assert torch.equal(kept.features, tokenizer.quantize.features_of(indices)[-1])
    hole = torch.zeros(8, 8)
    hole[2:4, 2:6] = 1
    made = inpaint(model, tokenizer, images, hole, torch.tensor([3, 3]), Draws.seeded(0, 2))
    assert torch.equal(made[..., hole == 0], images[..., hole == 0])
    assert not torch.equal(made[..., hole == 1], images[..., hole == 1])


def test_one_pixel_in_the_hole_frees_its_token_and_the_coarsest_map_always_stays():
    hole = torch.zeros(1, 8, 8)
    hole[0, 0, 7] = 1
    mask = image_keep_mask(hole, 4)
    assert mask[0].tolist() == [[1, 1, 1, 0], [1, 1, 1, 1], [1, 1, 1, 1], [1, 1, 1, 1]]
    assert keep_masks(torch.zeros(4, 4), SCALES)[0].item() == 1
    assert keep_masks(torch.zeros(4, 4), SCALES)[1].sum() == 0


def test_rejection_keeps_the_best_candidate_of_each_label():
    def make(labels, first):
        return torch.full((len(labels), 1, 1, 1), float(first)) * torch.tensor([1.0, -1.0])[:, None, None, None]

    images, scores = rejection_sample(make, lambda images, labels: images[:, 0, 0, 0], torch.tensor([0, 1]), 4)
    assert images.flatten().tolist() == [6, 0]
    assert scores.tolist() == [6, 0]


def test_released_checkpoints_load_with_their_derived_buffers():
    model = transformer(shared_aln=True)
    state = model.state_dict() | {"attn_bias_for_masking": torch.zeros(1), "lvl_1L": torch.zeros(1)}
    kwargs = {"num_classes": 3, "depth": 2, "embed_dim": 24, "num_heads": 3, "patch_nums": SCALES, "shared_aln": True}
    again = NextScaleTransformer.from_official(state, **kwargs, flash_if_available=False).eval()
    inputs = torch.randn(1, 20, 4)
    with torch.inference_mode():
        assert torch.equal(model(torch.tensor([1]), inputs), again(torch.tensor([1]), inputs))
    with pytest.raises(InputError, match="not a VAR transformer"):
        NextScaleTransformer.from_official({"a": torch.zeros(1)})


@pytest.mark.parametrize(
    "call, named",
    [
        (lambda m, t: m(torch.tensor([4]), torch.zeros(1, 20, 4)), "labels must lie in 0..2"),
        (lambda m, t: m(torch.tensor([0]), torch.zeros(1, 7, 4)), "ends within a scale"),
        (lambda m, t: sample(m, t, torch.tensor([0]), Draws.seeded(0, 1), guidance=-1), "guidance=-1"),
        (lambda m, t: sample(m, t, torch.tensor([0]), Draws.seeded(0, 1), top_k=17), "top_k=17"),
        (lambda m, t: keep_masks(torch.ones(3, 3), SCALES), "last scale has 4 x 4"),
        (lambda m, t: image_keep_mask(torch.zeros(1, 9, 9), 4), "does not divide into 4 x 4"),
        (lambda m, t: rejection_sample(lambda *_: 0, lambda *_: 0, torch.tensor([0]), 0), "candidates=0"),
        (lambda m, t: sample(transformer(patch_nums=(1, 4)), t, torch.tensor([0]), Draws.seeded(0, 1)), "built for scales"),
        (lambda m, t: transformer(patch_nums=(4, 2)), "growing sides"),
        (lambda m, t: transformer(num_heads=5), "does not divide into num_heads=5"),
    ],
)
def test_bad_input_is_named(tokenizer, call, named):
    with pytest.raises(InputError, match=named):
        call(transformer(), tokenizer)


def test_sampling_inside_autocast_is_the_same(tokenizer):
    model, labels = transformer(), torch.tensor([0, 1])
    outside = sample(model, tokenizer, labels, Draws.seeded(0, 2))
    with torch.autocast("cpu", torch.bfloat16):
        inside = sample(model, tokenizer, labels, Draws.seeded(0, 2))
    assert torch.equal(inside.features, outside.features)
