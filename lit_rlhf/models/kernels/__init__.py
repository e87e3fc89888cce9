"""What only makes a model faster, behind `ModelSpec.kernels`: with "plain" nothing here is used.

- `attention`: over grouped heads without copies, and over prompts and branches apart; `dense_attention`: its products;
- `norms`: a leaner backward of RMSNorm;
- `lora`: adapters in the base's dtype, added in place;
- `packed`: decoding by a copy of the weights that is laid out for it.

Each gives what transformers' or peft's own layers give, up to rounding; tests compare them.
"""

from transformers import PreTrainedModel

from lit_rlhf.models.kernels.attention import NAME
from lit_rlhf.models.kernels.norms import adopt_norm


def use_kernels(model: PreTrainedModel, attention: str) -> None:
    """Switch a model's norms, and with "sdpa" its attention, to the faster ones.

    Adapters are switched as they are added (`lora.adopt`), and each rollout packs anew (`packed.PackedStep`).
    """
    for module in model.modules():
        adopt_norm(module)
    if attention == "sdpa":  # models with attention code of their own keep it
        model.set_attn_implementation(NAME)
