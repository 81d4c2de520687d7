"""Tell causal language models from other models by the class that a configuration names."""

from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from rung.errors import RunError

WANTED = "name the folder or Hub id of a causal language model, of a class named ...ForCausalLM"
# What models are whose class has one of these in its name.
OTHER_HEADS = {
    "Reward": "a reward model, whose head grades a text",
    "ForSequenceClassification": "a classifier or a reward model, whose head grades a text",
    "ForTokenClassification": "a classifier, whose head sorts tokens into classes",
    "ForQuestionAnswering": "a reader, whose head marks the answer in a text",
    "ForMultipleChoice": "a classifier, whose head chooses one of several texts",
    "ForMaskedLM": "a masked language model, which fills gaps from both sides",
}


def check_architecture(where: str, config: PreTrainedConfig) -> None:
    """Raise `RunError` where the weights are those of a model that has no head of a language model.

    Its class is what the configuration names; one that names none is left to the weights. The body
    alone does where the whole head is tied to the embedding.
    """
    for name in getattr(config, "architectures", None) or []:
        for part, kind in OTHER_HEADS.items():
            if part in name:
                raise RunError(
                    f"{where} is a {name}, {kind}, and says no token's probability: {WANTED}"
                )
    if not config.get_text_config().tie_word_embeddings:
        refuse_body(where, config)


def refuse_body(where: str, config: PreTrainedConfig) -> None:
    """Raise `RunError` where the class that a configuration names is a body without any head."""
    for name in getattr(config, "architectures", None) or []:
        if name.endswith("Model") and not name.endswith(("LMHeadModel", "DoubleHeadsModel")):
            raise RunError(
                f"{where} is a {name}, the body of a model without the head that says each token's "
                f"probability: {WANTED}"
            )


def find_foreign_class(where: str, config: PreTrainedConfig) -> type[AutoModelForCausalLM]:
    """Return the class that reads a model of this configuration.

    Raises `RunError` where transformers has no causal language model of this type.
    """
    kind = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise RunError(
            f"{where} is a {kind!r} model, which reads by an encoder and writes by a decoder: only "
            f"a causal language model says how likely a text is; {WANTED}"
        )
    own = getattr(config, "auto_map", None) or {}
    if type(config) not in MODEL_FOR_CAUSAL_LM_MAPPING and "AutoModelForCausalLM" not in own:
        raise RunError(f"{where} is a {kind!r} model, which is no causal language model: {WANTED}")
    return AutoModelForCausalLM
