"""HMAR: independence of scales, the mask branch, schedules, editing, weights, training stages."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn import functional as F

from paperworks.errors import InputError
from paperworks.generators.draws import Draws
from paperworks.generators.masked_scale import MaskedScaleTransformer, merged, scale_weights, weighted_cross_entropy
from paperworks.generators.masked_scale_sampling import check_schedule, default_schedule, inpaint, least_confident, sample
from paperworks.layers.block_causal import block_diagonal_attention, block_diagonal_mask
from paperworks.objectives.scale_training import MaskedScaleTraining, ScaleTraining, hidden_positions
from paperworks.tokenizers.multi_scale_vq import MultiScaleVQVAE
from paperworks.training.objective import Context

SCALES = (1, 2, 4)


def model(**options) -> MaskedScaleTransformer:
    torch.manual_seed(0)
    made = MaskedScaleTransformer(3, 3, 16, 2, SCALES, 12, 4, refine_layers=1, **options).eval()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.1)
    return made


def tokenizer() -> MultiScaleVQVAE:
    torch.manual_seed(1)
    made = MultiScaleVQVAE(12, 4, 8, (1, 1), 1, SCALES, groups=4, in_channels=1).eval()
    torch.nn.init.normal_(made.quantize.embedding.weight)
    return made


@given(st.lists(st.integers(1, 5), min_size=1, max_size=4), st.integers(0, 100))
def test_slices_are_attention_under_the_diagonal_mask(sizes, seed):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, 1, 2, sum(sizes), 4, generator=generator)
    expected = F.scaled_dot_product_attention(q, k, v, attn_mask=block_diagonal_mask(sizes), scale=0.5)
    assert torch.allclose(block_diagonal_attention(q, k, v, sizes, 0.5), expected, atol=1e-5)


def test_a_scale_sees_its_own_inputs_only():
    net, labels, inputs = model(), torch.tensor([0, 2]), torch.randn(2, 20, 4)
    logits = net(labels, inputs)
    changed = inputs.clone()
    changed[:, :4] += 1  # the 2 x 2 map
    after = net(labels, changed)
    assert torch.equal(logits[:, :1], after[:, :1]) and torch.equal(logits[:, 5:], after[:, 5:])
    assert not torch.allclose(logits[:, 1:5], after[:, 1:5])


def test_hidden_tokens_do_not_leak_and_seen_ones_matter():
    net, labels = model(), torch.tensor([1])
    inputs, own = torch.randn(1, 20, 4), torch.randn(1, 20, 4)
    masked = torch.zeros(20, dtype=torch.bool)
    masked[5] = True
    logits = net(labels, inputs, own, masked)
    hidden, seen = own.clone(), own.clone()
    hidden[:, 5] += 3
    seen[:, 6] += 3
    assert torch.equal(net(labels, inputs, hidden, masked), logits)
    assert not torch.allclose(net(labels, inputs, seen, masked)[:, 6], logits[:, 6])


def test_single_scales_are_what_the_whole_pass_gives():
    net, code, labels = model(), tokenizer(), torch.tensor([0, 1])
    seen = {}
    made = sample(net, code.quantize, labels, Draws.seeded(0, 2), guidance=0, observe=seen.__setitem__)
    whole = net(labels, code.quantize.next_inputs(made.indices))
    single = default_schedule(SCALES)
    assert single == [[1], [1, 3], [16]] and made.passes == 4
    assert torch.allclose(seen["ns_2"], whole[:, 5:], atol=1e-5)
    assert torch.allclose(made.features, code.quantize.features_of(made.indices)[-1], atol=1e-5)


def test_images_do_not_depend_on_the_batch_and_guidance_runs_two_branches():
    net, code, labels = model(), tokenizer(), torch.tensor([0, 1, 2])
    together = sample(net, code.quantize, labels, Draws.seeded(3, 3), guidance=2.0, top_p=0.9)
    alone = sample(net, code.quantize, labels[2:], Draws.seeded(3, 1, first=2), guidance=2.0, top_p=0.9)
    assert all(torch.equal(a[2:], b) for a, b in zip(together.indices, alone.indices))


@given(st.integers(1, 12), st.integers(0, 12), st.integers(0, 50))
def test_the_least_confident_are_chosen_among_those_still_open(count, wanted, seed):
    generator = torch.Generator().manual_seed(seed)
    confidence, among = torch.rand(2, count, generator=generator), torch.rand(2, count, generator=generator) < 0.7
    chosen = least_confident(confidence, among, wanted)
    assert not (chosen & ~among).any()
    assert (chosen.sum(1) == torch.minimum(among.sum(1), torch.tensor(wanted))).all()
    for row in range(2):
        rest = among[row] & ~chosen[row]
        if chosen[row].any() and rest.any():
            assert confidence[row][chosen[row]].max() <= confidence[row][rest].min()


def test_editing_keeps_tokens_and_pixels():
    net, code, images = model(), tokenizer(), torch.rand(3, 1, 8, 8)
    hole = torch.zeros(8, 8)
    hole[4:] = 1
    made = inpaint(net, code, images, hole, torch.tensor([3, 3, 3]), Draws.seeded(0, 3), guidance=0)
    assert torch.equal(made[:, :, :4], images[:, :, :4]) and not torch.equal(made[:, :, 4:], images[:, :, 4:])
    indices = code.encode(images)
    keep = [torch.ones(1, found.shape[1], dtype=torch.bool) for found in indices]
    kept = sample(net, code.quantize, torch.tensor([0, 1, 2]), Draws.seeded(0, 3), given=indices, keep=keep)
    assert all(torch.equal(a, b) for a, b in zip(kept.indices, indices))


def test_weights_of_tokens_sum_to_one():
    for kind in ("lognorm", "equal", "uniform"):
        assert float(scale_weights(SCALES, kind).sum()) == pytest.approx(1, abs=1e-6)
    assert torch.allclose(scale_weights(SCALES, "uniform"), torch.full((21,), 1 / 21))
    assert scale_weights(SCALES, "equal")[0] == pytest.approx(1 / 3) and scale_weights(SCALES, "equal")[20] == pytest.approx(
        1 / 48
    )
    logits, tokens = torch.randn(2, 21, 12), torch.randint(12, (2, 21))
    plain = F.cross_entropy(logits.flatten(0, 1), tokens.flatten())
    assert weighted_cross_entropy(logits, tokens, scale_weights(SCALES, "uniform")) == pytest.approx(float(plain), rel=1e-5)


@given(st.integers(0, 200))
def test_something_is_hidden_in_every_scale(seed):
    masked = hidden_positions([1, 4, 9], torch.Generator().manual_seed(seed))
    assert masked.shape == (13,) and masked[:4].any() and masked[4:].any()


def test_the_second_stage_trains_the_mask_branch_alone():
    net, code = model(), tokenizer()
    batch = {"tokens": torch.cat(code.encode(torch.rand(4, 1, 8, 8)), 1), "label": torch.tensor([0, 1, 2, 0])}
    first = ScaleTraining(net.train(), code.quantize)
    first.loss(batch, "main", Context(0, 1, 0)).total.backward()
    assert all(p.grad is None for p in code.quantize.parameters()) and all(p.grad is None for p in net.mask_blocks.parameters())
    net.zero_grad(set_to_none=True)
    net.start_refining()
    assert torch.equal(net.mask_head.weight, net.ns_head.weight)
    second = MaskedScaleTraining(net, code.quantize)
    second.loss(batch, "main", Context(0, 1, 0)).total.backward()
    moved = {name for name, p in net.named_parameters() if p.grad is not None}
    assert moved and all(name.startswith(("mask_blocks", "mask_head", "mask_embed")) for name in moved)


def test_loss_of_hidden_tokens_is_their_plain_mean():
    net, code = model(), tokenizer()
    tokens, labels = torch.cat(code.encode(torch.rand(2, 1, 8, 8)), 1), torch.tensor([0, 2])
    objective = MaskedScaleTraining(net, code.quantize)
    masked = torch.zeros(20, dtype=torch.bool)
    masked[[1, 7]] = True
    loss, accuracy, count = objective.masked_loss(labels, tokens, masked)
    maps = objective.maps(tokens)
    own = torch.cat([code.quantize.own_inputs(scale, found) for scale, found in enumerate(maps) if scale], 1)
    logits = net(labels, code.quantize.next_inputs(maps), own, masked)[:, [2, 8]]
    expected = -logits.log_softmax(-1).gather(-1, tokens[:, [2, 8], None]).mean()
    assert count == 4 and loss.item() == pytest.approx(expected.item(), rel=1e-5)
    assert accuracy.item() == pytest.approx((logits.argmax(-1) == tokens[:, [2, 8]]).float().mean().item())


def test_kept_tokens_stay_and_final_ones_are_not_masked_again():
    net, code, images = model(), tokenizer(), torch.rand(2, 1, 8, 8)
    given = code.encode(images)
    keep = [torch.zeros(1, found.shape[1], dtype=torch.bool) for found in given]
    keep[1][0, 2] = True
    keep[2][0, :9] = True
    states: dict[str, torch.Tensor] = {}
    made = sample(
        net,
        code.quantize,
        torch.tensor([0, 1]),
        Draws.seeded(0, 2),
        schedule=[[1], [1, 3], [10, 4, 2]],
        given=given,
        keep=keep,
        after=lambda name, tokens: states.__setitem__(name, tokens.clone()),
    )
    for new, old, stays in zip(made.indices, given, keep):
        assert torch.equal(new[stays.expand_as(new)], old[stays.expand_as(old)])
    first, second, third = states["ns_2"], states["mask_2_1"], states["mask_2_2"]
    for row in range(2):  # only so many of a row's tokens were still open
        assert int((first[row] != second[row]).sum()) <= 6 and int((second[row] != third[row]).sum()) <= 2


def test_a_later_block_drops_more_paths():
    net = model(drop_path_rate=0.2)
    assert [getattr(block.drop_path, "rate", 0.0) for block in net.branch("mask")] == pytest.approx([0.0, 0.1, 0.2])


def test_separate_checkpoints_are_merged():
    torch.manual_seed(0)
    a, b = ({f"blocks.{i}.w": torch.full((1,), float(i + k)) for i in range(3)} for k in (0, 10))
    a, b = a | {"head.weight": torch.zeros(1), "word_embed.bias": torch.ones(1)}, b | {"head.weight": torch.ones(1)}
    made = merged(a, b, depth=3, refine_layers=1)
    assert made["base_blocks.1.w"] == 1 and made["ns_blocks.0.w"] == 2 and made["mask_blocks.0.w"] == 12
    assert made["ns_head.weight"] == 0 and made["mask_head.weight"] == 1 and made["word_embed_bias"] == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: check_schedule([[1], [1, 2], [16]], SCALES), r"the 2 x 2 map, \[1, 2\], must sum to 4"),
        (lambda: check_schedule([[1], [4]], SCALES), "2 entries for 3 scales"),
        (lambda: check_schedule([[1], [4, 0], [16]], SCALES), "positive counts"),
        (lambda: MaskedScaleTransformer(3, 2, 16, 2, SCALES, refine_layers=3), "between 1 and depth=2"),
        (lambda: model()(torch.tensor([4]), torch.randn(1, 20, 4)), r"0\.\.2"),
        (lambda: model()(torch.tensor([0]), torch.randn(1, 9, 4)), "20 follow the first scale"),
        (lambda: scale_weights(SCALES, "other"), "lognorm, equal and uniform"),
        (lambda: MaskedScaleTransformer.from_official({}), "not a checkpoint of HMAR"),
        (
            lambda: MaskedScaleTransformer.from_official({"head.weight": torch.zeros(1), "mask_embed.weight": torch.zeros(1)}),
            "merge it with its next-scale model",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
