"""Training every weight: gradients as diffusers' own, resumed runs, a base that opens, refusals."""

from contextlib import nullcontext
from types import SimpleNamespace

import diffusers
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors.torch import load_file

from iclora.adapter import Adapter
from iclora.cli.main import main
from iclora.errors import AdapterError, SettingsError
from iclora.models import load_model
from iclora.models.outline import Batch, outline_of
from iclora.train import whole
from iclora.train.costs import Costs
from iclora.train.plan import plan_run
from iclora.train.run import train
from iclora.train.state import TrainState
from tests.conftest import stop_after


@pytest.fixture
def own():
    """A tiny base that no other test sees: all of its weights change."""
    return load_model("tiny", device="cpu")


FULL = {"targets": "full", "lr": 1e-3, "rank": 16, "alpha": 16}


def test_a_run_stopped_and_resumed_gives_the_same_bytes_and_a_base_that_opens(own, config, capsys):
    whole_run = train(config("whole", **FULL), own)
    assert whole_run.made == whole_run.folder / "base"
    assert not (whole_run.folder / "adapter.safetensors").exists()
    assert not train(config("parts", **FULL), own, progress=stop_after(3)).finished
    parts = train(config("parts", **FULL), own, resume=True)
    name = "transformer/diffusion_pytorch_model.safetensors"
    one, other = (run.made / name for run in (whole_run, parts))
    assert one.read_bytes() == other.read_bytes()
    # The base in memory is the one whose name it has again.
    before = {k: v.clone() for k, v in own.denoiser.named_parameters()}
    stock = diffusers.FluxTransformer2DModel.from_pretrained(own.folder / "transformer")
    assert all(torch.equal(before[k], v) for k, v in stock.named_parameters())
    tuned = load_model(str(whole_run.made), device="cpu")
    kept = load_file(one)
    assert kept.keys() == before.keys()
    changed = [not torch.equal(kept[k], before[k]) for k in kept]
    assert all(changed)
    assert all(torch.equal(kept[k], v) for k, v in tuned.denoiser.named_parameters())
    assert tuned.identity() != own.identity()
    assert tuned.count_tokens("A tree.") == own.count_tokens("A tree.")
    # It says what it is, and nobody takes it for an adapter.
    card = ModelCard.load(whole_run.made / "README.md", ignore_metadata_errors=False)
    assert "every weight of the denoiser of `tiny`" in card.text
    assert card.data.base_model is None  # The hub knows no "tiny".
    for path in (whole_run.made, whole_run.folder):
        with pytest.raises(AdapterError, match=r"base\b.* and no adapter"):
            Adapter.load(path)
    capsys.readouterr()
    assert main(["info", str(whole_run.made)]) == 0
    assert "a base of its own, and no adapter\nfamily       flux\n" in capsys.readouterr().out
    # diffusers reads the same folder.
    pipeline = diffusers.DiffusionPipeline.from_pretrained(whole_run.made)
    assert torch.equal(pipeline.transformer.proj_out.weight, kept["proj_out.weight"])
    with pytest.raises(Exception, match="already holds a run"):
        train(config("whole", **FULL), own)


def test_gradients_of_all_weights_are_those_of_diffusers_forward(own):
    text = own.encode_text("A tree by the sea.")
    live = whole.free(own)
    torch.manual_seed(0)
    net = diffusers.FluxTransformer2DModel.from_pretrained(own.folder / "transformer")
    rows, columns = 3, 4
    z, sigma = torch.randn(1, rows * columns, 64), torch.tensor([0.4])
    ids = torch.zeros(rows, columns, 3)
    ids[..., 1], ids[..., 2] = torch.arange(rows)[:, None], torch.arange(columns)
    mine = own.velocity(z, sigma, [text], (16 * columns, 16 * rows), 3.5)
    joined = own.on_device([text])
    theirs = net(
        hidden_states=z,
        encoder_hidden_states=joined["prompt"],
        pooled_projections=joined["pooled"],
        timestep=sigma,
        guidance=torch.tensor([3.5]),
        img_ids=ids.flatten(0, 1),
        txt_ids=torch.zeros(joined["prompt"].shape[1], 3),
        return_dict=False,
    )[0]
    torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-4)
    for found in (mine, theirs):
        found.square().mean().backward()
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(live[name].grad, parameter.grad, rtol=1e-3, atol=1e-6, msg=name)


def test_what_a_whole_base_holds_is_counted_and_refused_where_it_does_not_fit(
    own, config, monkeypatch
):
    settings = config(**FULL, vram=24, dtype="fp32")
    costs = Costs(outline_of(own, torch.float32, "full"), settings, "cpu")
    count = sum(p.numel() for p in own.denoiser.parameters())
    assert costs.lora == count
    assert costs.held == 20 * count
    batch = Batch(2, 64, 64)
    assert costs.held < costs.step(batch, 3) < costs.step(batch, 0)
    assert costs.optimizer() >= costs.held
    plan = plan_run(settings, here=False)
    assert plan.phases["training"] > costs.held
    assert plan.settings.precision == "full"
    with pytest.raises(SettingsError, match="rounded away"):
        plan_run(config(**FULL, vram=24, dtype="bf16"), here=False)
    with pytest.raises(SettingsError, match=r"all .* weights of .* GB can be filled"):
        plan_run(
            config(**FULL, base="black-forest-labs/FLUX.1-dev", vram=80, dtype="fp32"), here=False
        )
    # A run without a plan is refused by the same count.
    for usable, fits in ((costs.held, True), (costs.held - 1, False)):
        card = SimpleNamespace(usable=usable, kernels="cpu")
        monkeypatch.setattr("iclora.train.card.find_card", lambda *_, card=card, **__: card)
        with nullcontext() if fits else pytest.raises(SettingsError, match="weights of tiny"):
            whole.check_whole(config(**FULL), own, print)


@pytest.mark.parametrize(
    ("more", "says"), [({"precision": "int8"}, "`precision`"), ({"shard": True}, "`shard`")]
)
def test_quantised_and_spread_bases_are_refused_by_name(config, more, says):
    with pytest.raises(SettingsError, match=says):
        config(**FULL, **more)


def test_weights_that_would_be_rounded_away_are_refused(config, tmp_path):
    half = load_model("tiny", device="cpu", dtype="bf16")
    with pytest.raises(SettingsError, match="rounded away"):
        train(config(**FULL), half)
    assert not (tmp_path / "run").exists()


def test_a_state_of_all_weights_is_taken_over_whole(own, config):
    state = TrainState.fresh(own, config(**FULL))
    for parameter in state.live.values():
        parameter.grad = torch.ones_like(parameter)
    state.optimizer.step()
    state.average(0.5)
    kept = {k: v.clone() for k, v in state.tensors().items()}
    other = TrainState.fresh(load_model("tiny", device="cpu"), config(**FULL))
    other.restore(kept, 1)
    assert all(torch.equal(v, kept[k]) for k, v in other.tensors().items())
