"""The mixture as a model of vLLM."""

import torch
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.models.transformers import TransformersMoEForCausalLM


class BamForCausalLM(TransformersMoEForCausalLM):
    """A BAM by vLLM's backend for transformers models; `heads.py` makes its attention layers wide."""

    def __init__(self, *, vllm_config, prefix=""):
        parallel = vllm_config.parallel_config
        for flag, size in (
            ("--tensor-parallel-size", parallel.tensor_parallel_size),
            ("--pipeline-parallel-size", parallel.pipeline_parallel_size),
        ):
            if size > 1:
                raise ValueError(f"bam-vllm serves a model in one process, but {flag} is {size}\nhint: leave out {flag}")
        # The code in the checkpoint refuses what vLLM alone would compute wrongly, unless it finds this.
        vllm_config.model_config.hf_config.served_by_bam_vllm = True
        super().__init__(vllm_config=vllm_config, prefix=prefix)
        # Scale, divisor and cap apply in this order in a BAM; vLLM has no divisor, and caps first.
        self.logits_processor = LogitsProcessor(self.text_config.vocab_size)

    def compute_logits(self, hidden_states):
        logits = super().compute_logits(hidden_states)
        if logits is None:
            return None
        config = self.text_config
        if config.logit_scale != 1.0:
            logits = logits * config.logit_scale
        if config.logits_divisor is not None:
            logits = logits / config.logits_divisor
        cap = config.final_logit_softcapping
        return logits if cap is None else cap * torch.tanh(logits / cap)
