"""What tells what one model computes from what another does: its weights, wherever they were loaded from."""

import hashlib
import json

import torch

from lit_rlhf.models.backbone import Backbone

_VERSION = 1  # raise it when the same weights come to give other log-probs
_PLACES = {
    *("_name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype"),
    "use_cache",
}


def weights_fingerprint(backbone: Backbone, role: str = "reference") -> str:
    """Hash the weights that a role computes with, and the config that says how.

    The base counts with its dtype and quantization, of adapters the role's own alone, and heads for scores. Names and
    paths don't count, so a copied directory gives the same hash, and a directory whose weights were changed another.

    Args:
        backbone: As it is now; of a sharded one each process would see its own part, so ask before sharding.
        role: Whose log-probs; "reward": whose scores.

    Returns:
        64 hexadecimal digits.
    """
    if backbone.device.type == "meta":  # weights without numbers are those of any model of the kind
        return "meta"
    said = backbone.model.config.to_dict().items()
    config = {name: value for name, value in said if name not in _PLACES}
    if role == "reward":  # the scores that are given are normalised
        config |= {"score_mean": backbone.score_mean, "score_std": backbone.score_std}
    digest = hashlib.sha256(json.dumps([_VERSION, config], sort_keys=True, default=str).encode())
    kept = {
        name.replace(".base_layer", ""): value
        for name, value in backbone.model.state_dict().items()
        if ".lora_" not in name or f".{role}." in name
    }
    if role == "reward":
        kept |= {f"heads.{name}": value for name, value in backbone.heads.state_dict().items()}
    for name, weight in sorted(kept.items()):
        value = weight.detach().cpu().contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
