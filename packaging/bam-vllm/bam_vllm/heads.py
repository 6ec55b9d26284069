"""How many heads the attention of each layer has."""

import copy

from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase


class BamHeads(ModelArchConfigConvertorBase):
    """A mixture's heads: those of all attention experts of a layer stand side by side in one attention."""

    def get_per_layer_hf_configs(self):
        """The configuration of each layer, with the heads that its attention call has."""
        config = self.hf_text_config
        layers = []
        for layer in range(config.num_hidden_layers):
            wide = copy.copy(config)
            if config.has_attention_experts(layer):
                wide.num_attention_heads *= config.num_attention_experts
                if config.attention_kv == "expert":
                    wide.num_key_value_heads *= config.num_attention_experts
            layers.append((wide, wide))
        return layers
