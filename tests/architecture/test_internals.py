"""What is used of other libraries beyond their documented interface: a sentence for each that moves."""

import importlib.metadata
import inspect
import re
import signal
import warnings
from argparse import ArgumentError
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from jsonargparse import ArgumentParser
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import MetricsTextColumn
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.demos.boring_classes import BoringModel as DemoModule
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, Strategy
from lightning.pytorch.trainer.connectors.logger_connector import logger_connector
from peft import LoraConfig
from peft.tuners.lora import LoraModel
from rich import get_console, reconfigure
from rich.table import Column
from torch import nn
from torch.distributed import TCPStore
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader
from transformers import LlamaConfig, LlamaModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_layers import GradientCheckpointingLayer

from lit_rlhf.internals import (
    bitsandbytes as our_bitsandbytes,
    jsonargparse as our_jsonargparse,
    lightning as our_lightning,
    peft as our_peft,
    torch as our_torch,
    transformers as our_transformers,
)

FOLDER = Path(__file__).parents[2] / "lit_rlhf/internals"


@pytest.mark.parametrize(
    "path", sorted(set(FOLDER.glob("*.py")) - {FOLDER / "__init__.py"}), ids=lambda path: path.stem
)
def test_each_file_says_the_version_it_was_read_from(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    found = re.search(r"read from (\d+\.\d+)", text)
    assert found, f"{path.name} doesn't say 'read from X.Y'"
    installed = importlib.metadata.version(path.stem)
    assert installed.split(".")[0] == found[1].split(".")[0], (
        f"{path.stem} {installed} is another major version than the {found[1]} that internals/{path.name} was read "
        "from: read its source again."
    )


def test_flash_kernels_of_torch() -> None:
    given = ["query", "key", "value", "cum_seq_q", "cum_seq_k", "max_q", "max_k", "dropout_p"]
    behind = {"forward": [], "backward": ["out", "logsumexp"]}
    for name, more in behind.items():
        schema = getattr(torch.ops.aten, f"_flash_attention_{name}").default._schema
        found = [argument.name for argument in schema.arguments]
        expected = [*["grad_out"][: len(more)], *given[:3], *more, *given[3:], "is_causal"]
        assert found[: len(expected)] == expected, "attend and attend_backward pass these in order"
        tail = ["rng_state", "unused"] if more else ["return_debug_mask"]
        assert found[len(expected) :][: len(tail) + 1] == [*tail, "scale"]
    assert len(torch.ops.aten._flash_attention_forward.default._schema.returns) == 5


@pytest.mark.parametrize("given", [1, 0.5, 1.0])  # 1.0 is all batches, 1 is one
def test_batches_of_the_command_line(given: float, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"limit_train_batches": float | int | None, "val_check_interval": float | int | str}
    annotations = inspect.unwrap(Trainer.__init__).__annotations__
    for name, kind in kinds.items():
        monkeypatch.setitem(annotations, name, kind)  # as `typing` may have it
    monkeypatch.setattr("sys.argv", ["fit", *(f"--trainer.{name}={given}" for name in kinds)])
    cli = our_lightning.CommandLineWins(
        DemoModule, run=False, save_config_callback=None, seed_everything_default=0
    )
    found = [getattr(cli.trainer, name) for name in kinds]
    assert [(value, type(value)) for value in found] == [(given, type(given))] * 2


def test_nccl_of_torch() -> None:
    nccl = torch.cuda.nccl
    said = "NCCLGroup makes a group by its number and sends by it"
    assert list(inspect.signature(nccl.unique_id).parameters) == [], said
    assert list(inspect.signature(nccl.init_rank).parameters) == ["num_ranks", "uid", "rank"], said
    for function in (nccl.all_reduce, nccl.broadcast):
        found = inspect.signature(function).parameters
        assert [next(iter(found)), list(found)[-1]] == ["inputs", "comms"], said


def test_operators_of_torch() -> None:
    aten = torch.ops.aten
    assert our_torch.makes_new(aten.add.Tensor)
    assert not our_torch.makes_new(aten.add_.Tensor)
    assert not our_torch.makes_new(aten.view.default)
    work = (aten.mm.default, aten.add_.Tensor, aten.copy_.default, aten.index_copy_.default)
    assert all(map(our_torch.computes, work))
    none = (aten.view.default, aten.t.default, aten.slice.Tensor, aten.empty.memory_format)
    assert not any(map(our_torch.computes, none))
    assert our_torch.writes_first(aten.add_.Tensor)
    assert not our_torch.writes_first(aten.add.Tensor)
    assert not our_torch.writes_first(aten.resize_.default)
    x = torch.zeros(2, 3)
    assert our_torch.storage_key(x) == our_torch.storage_key(x.t())
    assert our_torch.storage_key(x) != our_torch.storage_key(torch.zeros(2, 3))
    seen = []

    class Watch(our_torch.OperatorMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
            seen.append(func.name())
            return func(*args, **(kwargs or {}))

    with Watch():
        x.add(1)
    assert seen == ["aten::add.Tensor"]


def test_hooks_of_fsdp() -> None:
    layer = nn.Linear(2, 2)
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    finally:
        dist.destroy_process_group()
    said = "fully_shard's hooks aren't methods of an FSDPState: rollouts of sharded weights take the slow way"
    assert layer._forward_hooks and not our_torch.is_altered(layer), said
    layer.register_forward_hook(lambda *_: None)
    assert our_torch.is_altered(layer)


def test_torch() -> None:
    layer = nn.Linear(2, 2)
    assert not our_torch.is_altered(layer)
    for register in (
        layer.register_forward_hook,
        layer.register_forward_pre_hook,
        layer.register_full_backward_hook,
        layer.register_full_backward_pre_hook,
    ):
        handle = register(lambda *_: None)
        assert our_torch.is_altered(layer), f"torch keeps hooks of {register.__name__} elsewhere"
        handle.remove()
    x = torch.ones(2)
    before = our_torch.version_of(x)
    x.add_(1)
    assert our_torch.version_of(x) > before, "torch no longer counts writes in place in _version"
    layer.register_buffer("kept", x)
    layer.register_buffer("left_out", x, persistent=False)
    names = [name for name, _ in our_torch.state_tensors(layer)]
    assert names == ["weight", "bias", "kept"], "torch keeps _non_persistent_buffers_set elsewhere"
    logits = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    grad = torch.ones(3, 4).cumsum(-1)
    (wanted,) = torch.autograd.grad(logits.softmax(-1), logits, grad)
    found = our_torch.softmax_backward(grad, logits.softmax(-1).detach())
    assert torch.allclose(found, wanted), "_softmax_backward_data has other arguments"


def test_torch_counts_collectives_and_clones_its_store() -> None:
    own = TCPStore("127.0.0.1", 0, is_master=True)
    dist.init_process_group("gloo", store=own, rank=0, world_size=1)
    try:
        before = our_torch.collectives_begun()
        dist.all_reduce(torch.ones(1))
        dist.all_reduce(torch.ones(1), group=dist.new_group([0]))
        assert our_torch.collectives_begun() == before + 2, "torch no longer numbers collectives"
        our_torch.own_store().set("word", "said")
        assert our_torch.own_store().get("word") == b"said", "torch keeps its store elsewhere"
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_onednn_multiplies_as_plain_products_do(dtype: torch.dtype) -> None:
    weight = torch.randn(6, 4, generator=torch.Generator().manual_seed(0)).to(dtype)
    x, bias = weight[:3], weight[:, 0].clone()
    found = our_torch.laid_out_linear(weight, bias, 4)(x)
    assert torch.allclose(found.float(), nn.functional.linear(x, weight, bias).float(), atol=0.05)


def test_transformers() -> None:
    config = LlamaConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=2
    )
    config.vocab_size = 5
    model = LlamaModel(config)
    our_transformers.set_attention(config, "eager")
    assert our_transformers.attention_of(config) == "eager"
    assert model.config._attn_implementation == "eager", "the attention's name moved"
    assert our_transformers.takes_attention_functions(model), "_supports_attention_backend moved"
    accepted = our_transformers.accepts(model)
    assert "position_ids" in accepted, "forward can't be seen through its decorators"
    assert our_transformers.cache_argument(model) in accepted, "the cache has yet another name"
    calls: list[object] = []
    layer = next(m for m in model.modules() if isinstance(m, GradientCheckpointingLayer))
    our_transformers.recompute(layer, lambda run, *args: (calls.append(run), run(*args))[1])
    model.train()(input_ids=torch.tensor([[1, 2]]))
    assert calls, "_gradient_checkpointing_func is no longer what layers call in training mode"
    torch.manual_seed(0)
    drawn = our_transformers.drawn_once(lambda: LlamaModel(config), torch.device("cpu"))
    torch.manual_seed(0)
    embedding = drawn.embed_tokens.weight
    assert torch.equal(embedding, torch.empty_like(embedding).normal_(std=0.02)), (
        "init_weights is no longer what draws, or layers draw in another way than reset_parameters"
    )
    arguments = set(inspect.signature(sdpa_attention_forward).parameters)
    assert {"query", "key", "value", "attention_mask", "scaling", "is_causal"} <= arguments


def test_peft() -> None:
    base = nn.Sequential(nn.Linear(2, 3))
    LoraModel(base, LoraConfig(target_modules=["0"], init_lora_weights=False), "a")
    layer, x = base[0], torch.ones(1, 2)
    our_peft.set_active(layer, "a")
    adapted = layer(x)
    assert our_peft.active_of(layer) == "a"
    our_peft.set_active(layer, None)
    assert our_peft.active_of(layer) is None
    assert torch.equal(layer(x), layer.base_layer(x)), "_disable_adapters no longer turns it off"
    our_peft.set_active(layer, "another")
    assert our_peft.active_of(layer) is None
    our_peft.set_active(layer, "a")
    assert torch.equal(layer(x), adapted), "_active_adapter no longer says which adapter is on"


@pytest.mark.parametrize("kind", [Linear4bit, Linear8bitLt])
def test_bitsandbytes(kind: type[nn.Linear]) -> None:
    layer = kind(64, 64, bias=False)
    weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
    if kind is Linear8bitLt:
        layer = Linear8bitLt(64, 64, bias=False, has_fp16_weights=False)
    layer.load_state_dict({"weight": weight})
    our_bitsandbytes.keep_trainable(layer)
    layer = layer.to("cpu")
    if layer.weight.is_floating_point():  # quantized as it is moved from another device
        pytest.skip("this bitsandbytes quantizes on accelerators alone")
    found = our_bitsandbytes.float_weight(layer, torch.float32)
    assert found.shape == weight.shape
    assert float((found - weight).abs().mean()) < 0.1, "scales of quantized weights moved"
    layer.eval()
    found_layers = our_bitsandbytes.eight_bit_layers(nn.Sequential(layer))
    assert found_layers == ([layer] if kind is Linear8bitLt else [])
    for each in found_layers:
        our_bitsandbytes.keep_arithmetic(each)
    assert layer.training == (kind is Linear8bitLt)


def test_lightning_keeps_when_a_checkpoint_is_written() -> None:
    found = our_lightning.saves_every_n_steps(ModelCheckpoint(every_n_train_steps=3))
    assert found == 3, "ModelCheckpoint keeps every_n_train_steps elsewhere"
    assert our_lightning.saves_every_n_steps(ModelCheckpoint(every_n_epochs=1)) == 0
    assert our_lightning.saves_every_n_steps(Callback()) == 0


@pytest.mark.parametrize("strategy", [DDPStrategy, ModelParallelStrategy])
def test_lightning_keeps_the_time_limit_of_collectives(strategy: type[Strategy]) -> None:
    trainer = Trainer(accelerator="cpu", strategy=strategy(timeout=timedelta(seconds=7)), devices=1)
    found = our_lightning.collective_timeout(trainer)
    assert found == 7, f"{strategy.__name__} keeps its timeout elsewhere"


def test_jsonargparse() -> None:
    """Of its refusals only the words say what is wrong: these are those of the version that was read."""
    our_jsonargparse.read_none_as_null()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(nn.Module, "part")

    def refusal(*words: str) -> our_jsonargparse.Refusal:
        with pytest.raises(ArgumentError) as refused:
            parser.parse_args(list(words))
        return our_jsonargparse.read_refusal(str(refused.value))

    option = refusal("--part=torch.nn.Dropout", "--part.pp=0.1")
    assert option.key == "part", "jsonargparse names options otherwise than 4.53"
    assert ("option", "pp", "torch.nn.Dropout") in [line[:3] for line in option.complaints]
    assert ("class", "Nix") in [line[:2] for line in refusal("--part=Nix").complaints]
    assert ("module", "nix") in [line[:2] for line in refusal("--part=nix.Nix").complaints]
    value = refusal("--part=torch.nn.Dropout", "--part.p=x")
    assert value.key == "part.p"
    assert [line.kind for line in value.complaints] == ["other"]
    made = parser.parse_args(["--part=torch.nn.Dropout", "--part.p=0.25"])
    (found,) = our_jsonargparse.flat_options(made)
    assert (found[:2], found[2]["p"]) == (("part", nn.Dropout), 0.25)


def test_lightning(tmp_path: Path) -> None:
    """Every private name that `internals/lightning.py` and the checkpoint callback use, on a run in its midst."""
    seen: list[str] = []

    class Probe(Callback):
        def on_train_batch_end(self, trainer: Trainer, *args: object) -> None:
            loop = trainer.fit_loop
            for owner, names in (
                (loop, ("_should_accumulate", "_data_fetcher", "_can_stop_early")),
                (
                    loop.epoch_loop,
                    ("_num_ready_batches_reached", "_should_check_val_fx", "_results"),
                ),
                (trainer, ("_logger_connector", "_callback_connector", "fast_dev_run")),
                (LightningCLI, ("_parse_ckpt_path", "_run_subcommand", "_parser")),
                (ModelCheckpoint, ("_find_last_checkpoints", "_save_checkpoint")),
            ):
                for name in names:
                    assert hasattr(owner, name), f"Lightning's {owner} no longer has {name}"
            assert our_lightning.iterations_done(trainer) == len(seen) + 1
            assert our_lightning.current_metrics(trainer)["loss_step"] == 2.0 + len(seen)
            means = our_lightning.epoch_means(trainer)
            assert means, "Lightning keeps running means elsewhere"
            assert our_lightning.is_last_batch(trainer) == (len(seen) == 1)
            assert not our_lightning.is_within_iteration(trainer)
            seen.append("batch")

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            assert our_lightning.is_within_iteration(self.trainer)
            self.log("loss", 2.0 + batch_idx, on_step=True, on_epoch=True, batch_size=1)
            return self.layer(batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=[Probe()],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    trainer.fit(Model(), DataLoader(torch.ones(2, 1)))
    assert seen == ["batch", "batch"]


@pytest.mark.parametrize("left_out", [False, True])
def test_lightning_evaluates_without_inference_mode_where_it_is_told(
    tmp_path: Path, left_out: bool
) -> None:
    seen: dict[str, bool] = {}

    class Model(LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(1, 1)

        def step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            assert not torch.is_grad_enabled()
            seen[str(self.trainer.state.fn)] = torch.is_inference_mode_enabled()
            return batch

        validation_step = test_step = predict_step = step

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.layer(batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=tmp_path,
    )
    if left_out:
        our_lightning.without_inference_mode(trainer)
    rows = DataLoader(torch.ones(2, 1))
    for do in (trainer.validate, trainer.test, trainer.predict):
        do(Model(), rows)
    trainer.fit(Model(), rows, rows)
    wanted = [*3 * [not left_out], False]
    assert list(seen.values()) == wanted, "Lightning decides elsewhere under which mode"


def test_lightning_keeps_what_it_does_on_slurms_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    assert our_lightning.requeue_signal(Trainer(**quiet)) is None  # type: ignore[arg-type]
    monkeypatch.setenv("SLURM_NTASKS", "1")
    monkeypatch.setenv("SLURM_JOB_NAME", "train")
    trainer = Trainer(devices=1, **quiet)  # type: ignore[arg-type]
    assert our_lightning.requeue_signal(trainer) == signal.SIGUSR1
    assert not our_lightning.saves_within_iterations(trainer)
    trainer._signal_connector.register_signal_handlers()
    try:
        assert our_lightning.saves_within_iterations(trainer), "Lightning's handler is another now"
    finally:
        trainer._signal_connector.teardown()
    off = Trainer(devices=1, plugins=[SLURMEnvironment(auto_requeue=False)], **quiet)  # type: ignore[arg-type]
    assert our_lightning.requeue_signal(off) is None


def test_bars_print_where_they_are_told() -> None:
    bar = RichProgressBar()
    trainer = Trainer(callbacks=[bar], logger=False, enable_checkpointing=False, accelerator="cpu")
    try:
        our_lightning.print_to_stderr(trainer)
        bar._trainer = trainer
        trainer.training = True
        bar._init_progress(trainer)
        assert get_console().stderr, (
            "RichProgressBar no longer takes its console from _console_kwargs"
        )
        assert bar.progress.live.console.stderr
    finally:
        bar._stop_progress()
        reconfigure()


def test_rich_progress_bar_keeps_its_metrics_where_they_are_placed() -> None:
    bar, column = RichProgressBar(), Column(max_width=7)
    trainer = Trainer(accelerator="cpu", callbacks=[bar], logger=False, enable_checkpointing=False)
    bar._trainer = trainer
    bar._metric_component = MetricsTextColumn(trainer, "", " ", ".3f")
    our_lightning.place_metrics(bar, column)
    found = bar._metric_component.get_table_column()
    assert found is column, "Lightning or rich keeps the column of a bar's metrics elsewhere"


def test_the_parser_gives_its_schema() -> None:
    """`ParserJsonschema` and `get_all_subclass_paths` of jsonargparse."""
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(torch.optim.Optimizer, "trainer")
    schema = our_jsonargparse.json_schema(parser)
    trainer = schema["$defs"]["Optimizer"]
    assert "AdamW" in trainer["properties"]["class_path"]["examples"], "no subclasses are found"
    cases = {case["if"]["properties"]["class_path"]["enum"][1]: case for case in trainer["allOf"]}
    options = cases["AdamW"]["then"]["properties"]["init_args"]["properties"]
    assert "weight_decay" in options, "jsonargparse describes the options of a class elsewhere"


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")
def test_the_command_line_is_built_without_running() -> None:
    """`LightningCLI._run_subcommand` and `_parser`."""

    class Built(our_lightning.CommandLineWins):
        runs = False

    made = Built(
        DemoModule,
        save_config_callback=None,
        seed_everything_default=False,
        args=["fit", "--trainer.accelerator=cpu", "--trainer.logger=false"],
    )
    assert made.trainer.state.status == "initializing", "Lightning runs a subcommand elsewhere"
    parser = our_lightning.parser_of(made, "fit")
    assert "trainer.max_epochs" in parser.get_defaults(), "the command's parser is kept elsewhere"
    with pytest.raises(KeyError):  # else Lightning builds those of the other commands too
        our_lightning.parser_of(made, "validate")


@pytest.mark.parametrize("silenced", [False, True])
def test_a_missing_tensorboard_is_advertised_under_the_words_that_are_left_out(
    silenced: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logger_connector, "_TENSORBOARD_AVAILABLE", False)
    monkeypatch.setattr(logger_connector, "_TENSORBOARDX_AVAILABLE", False)
    logger_connector.warning_cache.clear()
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        if silenced:
            our_lightning.silence_adverts()
        Trainer(accelerator="cpu", logger=True, default_root_dir=tmp_path)
    assert any("tensorboardX" in str(each.message) for each in said) is not silenced
