"""GPT over image tokens: causality, the cache, token shift, class prefixes, guidance."""

import pytest
import torch

from paperworks.errors import InputError
from paperworks.generators.draws import Draws, pick
from paperworks.generators.gpt import GPT, sample_tokens


def small(**options) -> GPT:
    torch.manual_seed(0)
    model = GPT(**{"num_classes": 3, "tokens": 6, "vocab_size": 11, "dim": 16, "depth": 2, "heads": 2, **options}).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # far from the start, so that mistakes show
            parameter.add_(torch.randn_like(parameter) * 0.2)
    return model


@pytest.mark.parametrize("options", [{}, {"token_shift": True}, {"joint_vocabulary": True}, {"activation": "relu2"}])
def test_a_token_does_not_see_itself_or_later_ones(options):
    model, labels = small(**options), torch.tensor([0, 2])
    tokens = torch.randint(11, (2, 6))
    logits = model(labels, tokens)
    changed = tokens.clone()
    changed[:, 3] = (changed[:, 3] + 1) % 11
    after = model(labels, changed)
    assert torch.allclose(logits[:, :4], after[:, :4], atol=1e-6)
    assert not torch.allclose(logits[:, 4], after[:, 4], atol=1e-4)


@pytest.mark.parametrize(
    "options", [{}, {"token_shift": True}, {"joint_vocabulary": True}, {"class_tokens": 2, "token_shift": True}]
)
def test_cached_sampling_is_what_full_passes_give(options):
    model = small(**options)
    labels = torch.tensor([[0, 1], [2, 1]]) if options.get("class_tokens") == 2 else torch.tensor([0, 2])
    tokens = sample_tokens(model, labels, Draws.seeded(0, 2))
    uniform = Draws.seeded(0, 2).uniform("uniform", (2, 6))
    with torch.no_grad():
        logits = model(labels, tokens)[..., :11]
    assert torch.equal(pick(logits, uniform), tokens)


def test_guidance_extrapolates_from_the_null_class_and_images_do_not_depend_on_the_batch():
    model, labels = small(null_class=True), torch.tensor([0, 1, 2])
    with torch.no_grad():
        one = sample_tokens(model, labels[1:2], Draws.seeded(5, 1, first=1), guidance=2.0)
        assert torch.equal(sample_tokens(model, labels, Draws.seeded(5, 3), guidance=2.0)[1:2], one)
    with pytest.raises(InputError, match="null_class=True"):
        sample_tokens(small(), labels, Draws.seeded(0, 3), guidance=1.0)


def test_unconditional_networks_ignore_labels():
    model = small(num_classes=0)
    tokens = torch.randint(11, (2, 6))
    assert torch.equal(model(torch.tensor([0, 0]), tokens), model(torch.tensor([5, 9]), tokens))


def test_hidden_states_of_a_block_for_probes():
    model, tokens = small(), torch.randint(11, (2, 6))
    assert model.hidden(torch.tensor([0, 1]), tokens, 1).shape == (2, 16)
    with pytest.raises(InputError, match="there are 1 to 2"):
        model.hidden(torch.tensor([0, 1]), tokens, 3)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: small()(torch.tensor([3]), torch.zeros(1, 6, dtype=torch.int64)), r"0\.\.2"),
        (lambda: small()(torch.tensor([[0, 1]]), torch.zeros(1, 6, dtype=torch.int64)), "takes 1"),
        (lambda: sample_tokens(small(), torch.tensor([0]), Draws.seeded(0, 1), temperature=0), "positive"),
        (lambda: sample_tokens(small(), torch.tensor([0]), Draws.seeded(0, 1), top_k=12), "only 11"),
        (lambda: GPT(3, 0), "empty"),
        (lambda: GPT(3, 4, joint_vocabulary=True, null_class=True), "no null class"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(InputError, match=message):
        call()
