"""`lit-rlhf serve-reward`: a reward model that answers over HTTP."""

import os

from lit_rlhf.errors import ConfigurationError
from lit_rlhf.listening import open_port
from lit_rlhf.models.precision import default_device
from lit_rlhf.models.specs import DTypeOption, Quantization
from lit_rlhf.options import is_whole
from lit_rlhf.rewards.trained import TrainedReward


def serve_reward(
    path: str,
    host: str = "127.0.0.1",
    port: int = 8000,
    api_key_env: str | None = None,
    batch_tokens: int = 8192,
    dtype: DTypeOption | None = None,
    quantization: Quantization | None = None,
    base: str | None = None,
    device: str | None = None,
) -> None:
    """Answer POST /score with the scores of a reward model; HTTPReward asks it. See docs/howto/serve_reward.md.

    Args:
        path: An export, a checkpoint (.ckpt) of RewardModelModule, or a sequence classifier with one label.
        host: Address to listen on; others than this machine's own need a key.
        port: 0 takes a free one.
        api_key_env: Environment variable with the API key that clients must send.
        batch_tokens: Most tokens that are scored at a time, padding included.
        dtype: Of the weights; default: that of the checkpoint's spec, float32 for others.
        quantization: Of the linear layers; likewise.
        base: Base of an adapter, if it is no longer where the adapter says.
        device: cpu, cuda, cuda:1; default: the first GPU, if there is one.
    """
    from lit_rlhf.rewards.serving import (  # noqa: PLC0415
        RewardService,
        require_key,
        serve,
    )

    if not is_whole(batch_tokens, 1):
        raise ConfigurationError(f"batch_tokens={batch_tokens} must be at least 1.")
    key = None if api_key_env is None else os.environ.get(api_key_env, "").strip()
    if key == "":
        raise ConfigurationError(
            f"The environment variable {api_key_env!r}, which is to hold the API key, isn't set: export "
            f"{api_key_env}=..."
        )
    require_key(host, key)  # before minutes of loading
    open_port(host, port).close()
    given = {"dtype": dtype, "quantization": quantization}
    options = {name: value for name, value in given.items() if value is not None}
    backbone = TrainedReward.read(path, base).load(options).to(device or default_device())
    serve(RewardService(backbone.eval(), path, batch_tokens), host=host, port=port, key=key)
