"""A plugin of vLLM for mixtures whose attention layers have experts."""


def register():
    """What vLLM calls in each of its processes, perhaps more than once."""
    from vllm import ModelRegistry
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    from .heads import BamHeads

    MODEL_ARCH_CONFIG_CONVERTORS["bam"] = BamHeads
    # By name, so that vLLM imports the class only where it builds the model.
    ModelRegistry.register_model("BamForCausalLM", "bam_vllm.model:BamForCausalLM")
