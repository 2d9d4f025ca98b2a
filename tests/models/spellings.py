"""Published configs as different tools write them, shrunk until a model of theirs is tiny.

What each tool adds was seen in files that it wrote: none of it moves a logit of Hugging Face's
model.
"""

import json

from tests.models.published import PUBLISHED as DECODERS
from tests.models.published_encoder_decoders import PUBLISHED as ENCODER_DECODERS

SIZES = {
    "vocab_size": 37, "n_embd": 64, "hidden_size": 64, "d_model": 64, "n_head": 4,
    "num_attention_heads": 4, "num_heads": 4, "encoder_attention_heads": 4,
    "decoder_attention_heads": 4, "head_dim": 16, "d_kv": 16, "n_layer": 2,
    "num_hidden_layers": 2, "num_layers": 2, "num_decoder_layers": 2, "encoder_layers": 2,
    "decoder_layers": 2, "n_inner": 40, "intermediate_size": 40, "ffn_dim": 40, "d_ff": 40,
    "encoder_ffn_dim": 40, "decoder_ffn_dim": 40, "n_positions": 32, "n_ctx": 32,
    "max_position_embeddings": 32, "sliding_window": 3, "window_size": 3,
}  # fmt: skip


def shrunk(attributes):
    """The same config with sizes of a tiny model."""
    small = {k: SIZES.get(k, v) if v is not None else v for k, v in attributes.items()}
    for name in attributes:
        if name.endswith("_token_id") and isinstance(small[name], int) and small[name] >= 37:
            small[name] = 2
    if "num_key_value_heads" in attributes:
        grouped = attributes["num_key_value_heads"] < attributes["num_attention_heads"]
        small["num_key_value_heads"] = 2 if grouped else 4
    if "word_embed_proj_dim" in attributes:
        narrow = attributes["word_embed_proj_dim"] != attributes["hidden_size"]
        small["word_embed_proj_dim"] = 24 if narrow else 64
    if attributes["model_type"] == "phi3":
        small |= {"pad_token_id": 0, "eos_token_id": 2}  # its defaults are beyond so few tokens
    if attributes["model_type"] == "gemma3_text":
        small["num_hidden_layers"] = 6  # the last of which sees everything
    return small


def transformers_4_2(attributes):
    """Every field of the base class, as they were written when they differed from nothing."""
    return {
        "_name_or_path": "/tmp/checkpoint", "add_cross_attention": False, "bad_words_ids": None,
        "begin_suppress_tokens": None, "chunk_size_feed_forward": 0,
        "cross_attention_hidden_size": None, "diversity_penalty": 0.0, "do_sample": False,
        "early_stopping": False, "encoder_no_repeat_ngram_size": 0,
        "exponential_decay_length_penalty": None, "finetuning_task": None,
        "forced_bos_token_id": None, "id2label": {"0": "LABEL_0", "1": "LABEL_1"},
        "is_decoder": False, "label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0,
        "max_length": 20, "min_length": 0, "no_repeat_ngram_size": 0, "num_beam_groups": 1,
        "num_beams": 1, "num_return_sequences": 1, "output_attentions": False,
        "output_hidden_states": False, "output_scores": False, "prefix": None, "problem_type": None,
        "pruned_heads": {}, "remove_invalid_values": False, "repetition_penalty": 1.0,
        "return_dict": True, "return_dict_in_generate": False, "sep_token_id": None,
        "suppress_tokens": None, "task_specific_params": None, "temperature": 1.0,
        "tf_legacy_loss": False, "tie_encoder_decoder": False, "tokenizer_class": None,
        "top_k": 50, "top_p": 1.0, "torch_dtype": "float32", "torchscript": False,
        "transformers_version": "4.28.1", "typical_p": 1.0, "unk_token_id": 0,
        "use_bfloat16": False, "xla_device": None, "gradient_checkpointing": False, **attributes,
    }  # fmt: skip


def transformers_4_4(attributes):
    """With the traces of attention's implementation and of the cache."""
    return {
        "_name_or_path": "base/model", "_attn_implementation_autoset": True,
        "torch_dtype": "bfloat16", "transformers_version": "4.49.0", "use_cache": False,
        "cache_implementation": None, **attributes,
    }  # fmt: skip


def transformers_5(attributes):
    """As today's library writes it, defaults and all."""
    import transformers

    stored = dict(attributes)
    config = transformers.AutoConfig.for_model(stored.pop("model_type"), **stored)
    return json.loads(config.to_json_string(use_diff=False))


def unsloth(attributes):
    """As it writes a model that it has fine-tuned."""
    return {
        **attributes, "unsloth_fixed": True, "unsloth_version": "2024.9",
        "quantization_config": None, "pad_token_id": attributes.get("pad_token_id", 0),
        "architectures": None, "torch_dtype": "bfloat16",
    }  # fmt: skip


def mergekit(attributes):
    """As it writes a merge of several models."""
    return {
        **attributes, "_name_or_path": "a/b", "transformers_version": "4.44.1",
        "mergekit": {"merge_method": "slerp", "models": ["a/b", "c/d"]}, "base_model": "a/b",
    }  # fmt: skip


def converted_gguf(attributes):
    """As today's library writes what it has read from a GGUF file."""
    return {
        **transformers_5(attributes), "_model_name_or_path": "model.gguf", "unk_token_id": 0,
        "model_name": "Model 0.5B", "general.file_type": 7,
    }  # fmt: skip


TOOLS = (transformers_4_2, transformers_4_4, transformers_5, unsloth, mergekit, converted_gguf)
PUBLISHED = {**DECODERS, **ENCODER_DECODERS}
# every model by one tool, in turn, and one model by all
SPELLINGS = {
    f"{model} by {TOOLS[number % len(TOOLS)].__name__}": (model, TOOLS[number % len(TOOLS)])
    for number, model in enumerate(PUBLISHED)
} | {
    f"{model} by {tool.__name__}": (model, tool)
    for model in ("meta-llama/Llama-3.2-1B", "openai-community/gpt2")
    for tool in TOOLS
}


def spelled(name):
    """One of them, shrunk."""
    model, tool = SPELLINGS[name]
    return tool(shrunk(PUBLISHED[model]))
