"""StableLM (Bellagente et al., 2024): Llama, with layer norms and a part of each head rotated.

Attention and feed-forward follow each other, or lie side by side behind one norm.
"""

from collections.abc import Mapping
from typing import Any

from lensllm_jax.models.decoder import BlockForm, DecoderConfig
from lensllm_jax.models.families import llama
from lensllm_jax.models.family import Family, Weight, norm_weights, sizes


def config(hf: Mapping[str, Any]) -> DecoderConfig:
    """Our config from the attributes of a StableLM config."""
    head_dim = hf["hidden_size"] // hf["num_attention_heads"]
    parallel = hf["use_parallel_residual"]
    return DecoderConfig(
        **sizes(hf),
        num_kv_heads=hf["num_key_value_heads"],
        d_ff=hf["intermediate_size"],
        activation=hf["hidden_act"],
        gated=True,
        norm_epsilon=hf["layer_norm_eps"],
        block_form=BlockForm.PARALLEL_ONE_NORM if parallel else BlockForm.PRE_NORM,
        attention_bias=hf["use_qkv_bias"],
        output_bias=False,
        feed_forward_bias=False,
        rotaries=llama.rotaries(hf["rope_parameters"], head_dim),
        tied_head=hf["tie_word_embeddings"],
    )


def weights(config: DecoderConfig) -> tuple[Weight, ...]:
    """The weight table."""
    if config.block_form is BlockForm.PARALLEL_ONE_NORM:
        norms = {"input_layernorm": "norm"}
    else:
        norms = llama.NORMS
    (embedding, _, *head) = llama.ends(config)
    return (
        embedding,
        *norm_weights("norm", "final_norm"),
        *head,
        *(
            weight
            for theirs, ours in norms.items()
            for weight in norm_weights(f"{llama.BLOCK}.{theirs}", f"blocks/{ours}")
        ),
        *llama.attention(config),
        *llama.feed_forward(config),
    )


FAMILY = Family(
    name="stablelm",
    config=config,
    weights=weights,
    harmless=frozenset({"attention_dropout", "hidden_dropout"}),
    # a norm of its own for each head
    required={"qk_layernorm": False},
    ignored=llama.IGNORED,
    architecture="StableLmForCausalLM",
)
