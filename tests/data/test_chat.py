"""Records as conversations: the templates of published families, and what a stranger's may do."""

import datetime
import resource
import sys

import pytest
from tokenizers import AddedToken

from lensllm_jax.checkpoints.summary import describe_candidate
from lensllm_jax.checks import UserError
from lensllm_jax.data import chat
from lensllm_jax.data.chat import conversation, has_chat_template
from lensllm_jax.data.encoding import encode_causal
from lensllm_jax.data.task import Example, Task
from lensllm_jax.measurement.rows import encode_rows, row_lengths

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
GEMMA = (
    "{{ bos_token }}{% for m in messages %}{% set role = 'model' if m['role'] == 'assistant' "
    "else m['role'] %}<start_of_turn>{{ role }}\n{{ m['content'] | trim }}<end_of_turn>\n"
    "{% endfor %}"
)
LLAMA_2 = (
    "{% for m in messages %}{% if m['role'] == 'user' %}{{ bos_token + '[INST] ' + m['content'] "
    "+ ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' ' + eos_token }}{% endif %}{% endfor %}"
)
DATED = (
    "{{ strftime_now('%d %b %Y') }}{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}"
    "{% endfor %}"
)
QUESTION = Example(" What of 7? ", "the end of 7 kings <|im_end")


def tokenizer(template):
    """The zoo's, with the marks of the families."""
    fast = describe_candidate("zoo/gpt2-xs").tokenizer
    marks = ["<|im_start|>", "<|im_end|>", "<start_of_turn>", "<end_of_turn>"]
    fast.add_special_tokens({"additional_special_tokens": marks})
    fast.chat_template = template
    return fast


@pytest.mark.parametrize(
    ("template", "prompt", "end"),
    [
        (CHATML, "<|im_start|>user\n What of 7? <|im_end|>\n<|im_start|>assistant\n", "<|im_end|>"),
        (
            GEMMA,
            "<|endoftext|><start_of_turn>user\nWhat of 7?<end_of_turn>\n<start_of_turn>model\n",
            "<end_of_turn>",
        ),
        (LLAMA_2, "<|endoftext|>[INST]  What of 7?  [/INST] ", " <|endoftext|>"),
        (DATED, "26 Jul 2024user:  What of 7? assistant: ", "<|endoftext|>"),
    ],
)
def test_only_the_target_and_the_end_of_its_turn_are_scored(template, prompt, end):
    fast = tokenizer(template)
    assert conversation(fast).of(QUESTION) == (prompt + QUESTION.target + end, len(prompt))
    encoded = encode_causal([QUESTION, Example("", "plain text")], fast, chat=True)
    row, labels = encoded.input_ids[0], encoded.labels[0]
    assert fast.decode(row[encoded.attention_mask[0] == 1]) == prompt + QUESTION.target + end
    scored = fast.decode(labels[labels != -100])
    assert scored.strip() == (QUESTION.target + end).strip()
    assert fast.decode(labels[encoded.is_end[0]]) == end  # a space before it is no text either
    is_text = (labels != -100) & ~encoded.is_end[0]
    assert fast.decode(labels[is_text]).strip() == QUESTION.target
    assert encoded.num_target_bytes[0] == len(QUESTION.target)
    # a record without a prompt is no conversation
    assert fast.decode(encoded.labels[1][encoded.labels[1] != -100]) == "plain text<|endoftext|>"


@pytest.mark.parametrize("target", ["ok", "日本。", "ok 😀", "naïve café", "ok ", "ok\n"])
@pytest.mark.parametrize("strips", [False, True])
@pytest.mark.parametrize("template", [CHATML, LLAMA_2])
def test_the_end_begins_behind_the_last_byte_of_the_target(template, target, strips):
    fast = tokenizer(template)
    if strips:  # an end token that takes the white space before it
        fast.add_tokens([AddedToken("<|im_end|>", lstrip=True, special=True)], special_tokens=True)
    turns = conversation(fast)
    encoded = encode_causal([Example("What?", target)], fast, chat=True)
    labels, is_end = encoded.labels[0], encoded.is_end[0]
    text = fast.decode(labels[(labels != -100) & ~is_end])
    assert text.strip() == target.strip()  # white space of both sides may be one token
    end = fast.decode(labels[is_end])
    assert end.strip() == turns.end.strip()
    assert labels[is_end][-1] == labels[labels != -100][-1]


def test_it_is_the_text_that_transformers_renders():
    fast = tokenizer(CHATML)
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rendered = fast.apply_chat_template(turns, tokenize=False)
    text, border = conversation(fast).of(Example("a", "b"))
    assert rendered == text + "\n"  # which nobody has to write
    asked = fast.apply_chat_template(turns[:1], tokenize=False, add_generation_prompt=True)
    assert text[:border] == asked


def test_a_day_changes_nothing(monkeypatch):
    fast = tokenizer(DATED)
    today = datetime.datetime.now().strftime("%d %b %Y")
    assert today in fast.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert today not in conversation(fast).of(QUESTION)[0]


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        ("{{ raise_exception('no user here') }}", "no user here"),
        ("{{ messages[0]['content'] }}", "got '"),
        ("{{ messages[1]['content'] }}{{ messages[1]['content'] }}", "got '"),
        ("{{ ''.__class__.__mro__ }}", "access to attribute"),
        ("{% for %}", "Expected"),
        (
            "{% for i in range(99999) %}{% for j in range(99999) %}.{% endfor %}{% endfor %}",
            "end in",
        ),
        ("{{ 'a' * 10000000000 }}", "more than 4 gib"),
    ],
)
def test_a_template_without_both_turns_or_with_tricks_is_refused(template, reason, monkeypatch):
    monkeypatch.setattr(chat, "_LONGEST_SECONDS", 0.5)
    before = sys.gettrace(), resource.getrlimit(resource.RLIMIT_AS)
    with pytest.raises(UserError, match="`chat_template` must show a user's") as refused:
        conversation(tokenizer(template))
    assert reason.lower() in str(refused.value).lower()
    assert "\n" not in str(refused.value)
    assert (sys.gettrace(), resource.getrlimit(resource.RLIMIT_AS)) == before


def test_candidates_without_a_template_read_plain_text():
    plain, chat = describe_candidate("zoo/gpt2-xs"), describe_candidate("zoo/gpt2-xs")
    assert not has_chat_template(plain.tokenizer)
    chat.tokenizer.chat_template = DATED
    task = Task("t", "", (QUESTION,), (QUESTION,), (QUESTION,), {}, "chat")
    found = {}
    for name, candidate in (("plain", plain), ("chat", chat)):
        for setting in ("none", "auto"):
            lengths = row_lengths(task, candidate, chat_template=setting)
            rows = encode_rows(task.train, candidate, lengths, chat_template=setting)
            found[name, setting] = int(rows.attention_mask.sum())
            assert rows.num_target_bytes.tolist() == [len(QUESTION.target)]
    assert found["plain", "none"] == found["plain", "auto"] == found["chat", "none"]
    assert found["chat", "auto"] > found["chat", "none"]
