import torch

from paperworks.generators.draws import Draws
from paperworks.generators.next_token import NextTokenTransformer, sample_tokens


def test_cached_sampling_draws_what_teacher_forcing_predicts():
    torch.manual_seed(0)
    model = NextTokenTransformer(3, 2, 24, 3, length=9, vocab_size=11).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    labels = torch.tensor([0, 2])
    tokens = sample_tokens(model, labels, Draws.seeded(0, 2), guidance=0)
    with torch.inference_mode():
        logits = model(labels, tokens)
    cumulative = logits.double().softmax(-1).cumsum(-1)
    uniform = Draws.seeded(0, 2).uniform("uniform", (2, 9)).double()
    # the drawn token is where the teacher-forced distribution crosses the same uniform number
    assert torch.equal((cumulative <= uniform[..., None]).sum(-1), tokens)


def test_a_token_never_sees_itself_or_later_ones():
    model = NextTokenTransformer(2, 1, 8, 1, length=5, vocab_size=7).eval()
    torch.nn.init.normal_(model.head.weight)
    tokens = torch.zeros(1, 5, dtype=torch.int64)
    changed = tokens.clone()
    changed[0, 3] = 4
    with torch.inference_mode():
        a, b = model(torch.tensor([0]), tokens), model(torch.tensor([0]), changed)
    assert torch.equal(a[:, :4], b[:, :4]) and not torch.equal(a[:, 4], b[:, 4])
