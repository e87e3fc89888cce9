"""The mathematics that several callers share, as pure functions of tensors (layer L1): no Lightning, no state.

Formulas of losses, advantages and the like stand in their classes, in `lit_rlhf.objectives`. Axes: B prompts, K
branches of each, N = B * K sequences, T tokens. Losses come unreduced. Masks are boolean, True = counts. Log-probs and
divergences are in nats.
"""

from lit_rlhf.functional.advantages import (
    AdvantageEstimate as AdvantageEstimate,
    discounted_returns as discounted_returns,
    equal_groups as equal_groups,
    gae as gae,
    greedy_baseline as greedy_baseline,
    group_centered as group_centered,
    spread_over_tokens as spread_over_tokens,
)
from lit_rlhf.functional.branches import (
    BranchLayout as BranchLayout,
    BranchParts as BranchParts,
    BranchSegments as BranchSegments,
    ExpandedRows as ExpandedRows,
    PackedRows as PackedRows,
    add_mismatched_branches as add_mismatched_branches,
    at_step_ends as at_step_ends,
    branch_attention_mask as branch_attention_mask,
    branch_layout as branch_layout,
    branch_parts as branch_parts,
    branch_segments as branch_segments,
    expand_branches as expand_branches,
    pack_branches as pack_branches,
)
from lit_rlhf.functional.chunks import rows_by_chunks as rows_by_chunks
from lit_rlhf.functional.kl import (
    full_kl as full_kl,
    k1 as k1,
    k2 as k2,
    k3 as k3,
    kl_of_logprobs as kl_of_logprobs,
)
from lit_rlhf.functional.logprobs import (
    TokenLogprobs as TokenLogprobs,
    chunked_logprobs as chunked_logprobs,
    token_entropy as token_entropy,
    token_logprobs as token_logprobs,
)
from lit_rlhf.functional.masking import (
    Moments as Moments,
    last_index as last_index,
    masked_mean as masked_mean,
    masked_moments as masked_moments,
    masked_sum as masked_sum,
    merge_moments as merge_moments,
    padded_rows as padded_rows,
    whiten as whiten,
)
from lit_rlhf.functional.numerics import (
    at_least_float32 as at_least_float32,
    bounded_exp as bounded_exp,
    log1mexp as log1mexp,
    log_collision as log_collision,
    per_token as per_token,
)
from lit_rlhf.functional.policy_losses import (
    approx_kl as approx_kl,
    clipped_value_loss as clipped_value_loss,
    log_ratio as log_ratio,
    prefix_ratio as prefix_ratio,
    relative_reward_loss as relative_reward_loss,
    sequence_ratio as sequence_ratio,
    token_ratio as token_ratio,
    value_clip_fraction as value_clip_fraction,
)
from lit_rlhf.functional.rankings import (
    best_of_n_kl as best_of_n_kl,
    better_pairs as better_pairs,
    pair_agreement as pair_agreement,
    plackett_luce_loss as plackett_luce_loss,
    preference_probability as preference_probability,
)
from lit_rlhf.functional.rewards import (
    kl_penalized_scores as kl_penalized_scores,
    kl_shaped_rewards as kl_shaped_rewards,
    missing_eos_penalty as missing_eos_penalty,
    no_moments as no_moments,
    overlong_penalty as overlong_penalty,
    place_at_end as place_at_end,
)
