"""What becomes of each file of shapes/, read without an option."""

from typing import Any

HELPSTEER3 = (
    "PreferenceStrength(prompt='context', first='response1', second='response2', "
    "strength='overall_preference')"
)
SKY = "<|user|>What color is the sky?<|assistant|>"
BLUE, COLOR = "Blue.<eos>", "<|user|>Name a color.<|assistant|>"
# File: DataModule, format, prompt and answers of the first record, its fields, records in all.
CASES: dict[str, tuple[str, str, str, tuple[str, ...], dict[str, Any], int]] = {
    "hh": (
        "Preference",
        "AsChat(ImplicitPrompt())",
        "<|user|>What is rain?<|assistant|>Water from clouds.<eos><|user|>And snow?<|assistant|>",
        ("Frozen rain.<eos>", "No idea.<eos>"),
        {},
        2,
    ),
    "ultrafeedback_raw": (
        "Ranked",
        "AsChat(RatedAnswers())",
        COLOR,
        (BLUE, "A dog.<eos>", "Red or so.<eos>"),
        {"score": [4.5, 1.25, 3.75]},
        2,
    ),
    "ultrafeedback_binarized": (
        "Preference",
        "ImplicitPrompt()",
        COLOR,
        (BLUE, "A dog.<eos>"),
        {},
        2,
    ),
    "helpsteer2": ("Unpaired", "AsChat(HelpSteer2Ratings())", COLOR, (BLUE,), {"score": 4.0}, 2),
    "helpsteer2_neighbours": (
        "Preference",
        "AsChat(HelpSteer2Pairs())",
        COLOR,
        (BLUE, "A dog.<eos>"),
        {"margin": 3.0},
        2,
    ),
    "helpsteer2_preference": (
        "Preference",
        "AsChat(PreferenceStrength())",
        COLOR,
        (BLUE, "A dog.<eos>"),
        {"margin": 3.0},
        2,
    ),
    "helpsteer3": (
        "Preference",
        HELPSTEER3,
        "<|user|>Name a color.<|assistant|>Blue.<eos><|user|>Another one.<|assistant|>",
        ("Red.<eos>", "A dog.<eos>"),
        {"margin": 2.0},
        2,
    ),
    "summarize_comparisons": (
        "Preference",
        "SummaryComparison()",
        "SUBREDDIT: r/cats\nTITLE: Cat on desk\nPOST: My cat sleeps on my desk.\nTL;DR:",
        (" My cat sleeps on the desk.<eos>", " A cat.<eos>"),
        {},
        2,
    ),
    "shp": (
        "Preference",
        "AsChat(PreferenceLabel())",
        "<|user|>How long do I boil an egg?<|assistant|>",
        ("Eight minutes.<eos>", "An hour.<eos>"),
        {},
        2,
    ),
    "nectar": (
        "Ranked",
        "AsChat(RankedAnswers())",
        COLOR,
        (BLUE, "Red, perhaps.<eos>", "A dog.<eos>"),
        {"score": [-1.0, -2.0, -3.0]},
        2,
    ),
    "reward_bench_2": (
        "Ranked",
        "AsChat(AnswerSets())",
        COLOR,
        (BLUE, "A dog.<eos>", "Rain.<eos>", "Four.<eos>"),
        {"score": [1.0, 0.0, 0.0, 0.0]},
        2,
    ),
    "oasst_trees": (
        "Ranked",
        "ConversationTree()",
        COLOR,
        (BLUE, "A dog.<eos>"),
        {"score": [0.0, -1.0]},
        2,
    ),
    "oasst_rows": (
        "Ranked",
        "ConversationTreeRows()",
        COLOR,
        (BLUE, "A dog.<eos>"),
        {"score": [0.0, -1.0]},
        2,
    ),
    "skywork": ("Preference", "ImplicitPrompt()", COLOR, (BLUE, "A dog.<eos>"), {}, 2),
    "prm800k": (
        "Process",
        "AsChat(PRM800K())",
        "<|user|>What is 1 + 2 + 3?<|assistant|>",
        ("1 + 2 = 3\n", "Then we add 3.\n", "3 + 3 = 7<eos>"),
        {"step_label": [1.0, 1.0, 0.0]},
        2,
    ),
    "math_shepherd": (
        "Process",
        "AsChat(MathShepherd())",
        "<|user|>What is 1 + 2 + 3?<|assistant|>",
        ("Step 1: 1 + 2 = 3.\n", "Step 2: 3 + 3 = 7. The answer is: 7<eos>"),
        {"step_label": [1.0, 0.0]},
        2,
    ),
    **{
        name: ("Unpaired", "Unpaired()", "The sky is", (" blue.<eos>",), {"label": True}, 2)
        for name in ("kto_bool", "kto_01", "kto_signs", "trl_unpaired")
    },
    "sharegpt": (
        "Demonstration",
        "Conversation(messages='conversations')",
        "<|system|>Be brief.<|user|>Hi.<|assistant|>Hello.<eos>" + COLOR,
        (BLUE,),
        {},
        2,
    ),
    "sharegpt_preference": (
        "Preference",
        "ExplicitPrompt(prompt='conversations')",
        COLOR,
        (BLUE, "A dog.<eos>"),
        {},
        2,
    ),
    "messages_preference": (
        "Preference",
        "ExplicitPrompt(prompt='messages')",
        "<|system|>Be brief." + COLOR,
        (BLUE, "A dog.<eos>"),
        {},
        2,
    ),
    "alpaca": (
        "Demonstration",
        "AsChat(Alpaca())",
        "<|user|>Translate to French.\ncat<|assistant|>",
        ("chat<eos>",),
        {},
        2,
    ),
    "dolly": (
        "Demonstration",
        "AsChat(Alpaca(input='context', output='response'))",
        "<|user|>Which animal?\nA cat sleeps.<|assistant|>",
        ("A cat.<eos>",),
        {},
        2,
    ),
    "messages_tools": (
        "Demonstration",
        "Conversation()",
        "[weather](weather)<|system|>Be brief.<|user|>Weather in Rome?<|assistant|><eos><|tool|>sunny<|assistant|>",
        ("It is sunny.<eos>",),
        {},
        1,
    ),
    "trl_text": ("Demonstration", "PlainText()", "<bos>", ("The sky is blue.<eos>",), {}, 2),
    "trl_messages": ("Demonstration", "Conversation()", SKY, ("It is blue.<eos>",), {}, 2),
    "trl_prompt": ("Prompt", "PromptOnly()", "The sky is", (), {}, 2),
    "trl_prompt_messages": ("Prompt", "PromptOnly()", SKY, (), {}, 2),
    "trl_prompt_completion": (
        "Demonstration",
        "Demonstration()",
        "The sky is",
        (" blue.<eos>",),
        {},
        2,
    ),
    "trl_prompt_completion_messages": (
        "Demonstration",
        "Demonstration()",
        SKY,
        ("It is blue.<eos>",),
        {},
        2,
    ),
    "trl_preference": (
        "Preference",
        "ExplicitPrompt()",
        "The sky is",
        (" blue.<eos>", " green.<eos>"),
        {},
        2,
    ),
    "trl_preference_messages": (
        "Preference",
        "ExplicitPrompt()",
        SKY,
        ("It is blue.<eos>", "It is green.<eos>"),
        {},
        2,
    ),
    "trl_preference_implicit": (
        "Preference",
        "SharedPrefix()",
        "The sky is",
        (" blue.<eos>", " black.<eos>"),
        {},
        2,
    ),
    "trl_preference_implicit_messages": (
        "Preference",
        "ImplicitPrompt()",
        SKY,
        ("It is blue.<eos>", "It is green.<eos>"),
        {},
        2,
    ),
    "trl_unpaired_messages": (
        "Unpaired",
        "Unpaired()",
        SKY,
        ("It is green.<eos>",),
        {"label": False},
        2,
    ),
    "trl_steps": (
        "Process",
        "Steps()",
        "Which is larger, 9.8 or 9.11?",
        ("Both have the same whole part.\n", "0.11 is larger than 0.8.<eos>"),
        {"step_label": [1.0, 0.0]},
        2,
    ),
}

READS_TOOLS = (
    "{% for tool in tools or [] %}[{{ tool.function.name }}]{% endfor %}{% for each in messages %}"
    "{% for call in each.tool_calls or [] %}({{ call.function.name }}){% endfor %}{% endfor %}"
)
"""What a chat template begins with to show the tools of the row `messages_tools`, as its prompt above has them."""
