"""The lines of the zoo's table whose point is what an expert is."""

from __future__ import annotations

from mocomp.zoo import Entry

DECODER, FUSION, VISION = "decoder:Decoder", "early_fusion:EarlyFusion", "vision:Vision"
SEQ2SEQ, TAPERED = "encoder_decoder:EncoderDecoder", "tapered:TaperedDecoder"
CONVOLUTION, STATE_SPACE = "convolutional:Convolutional", "state_space:StateSpace"
BANK = "softmax_topk + ffn"
"""What is in truth a bank of feed-forward experts behind a softmax."""

ENTRIES = (
    Entry("shared", DECODER, "experts.shared:SharedExperts", "DeepSeekMoE, Dai 2024", BANK),
    Entry("shared_gated", DECODER, "experts.shared:GatedShared", "Qwen1.5-MoE 2024", BANK),
    Entry("residual", SEQ2SEQ, "experts.residual:WeighedResidual", "DeepSpeed-MoE, Rajbhandari 2022", BANK),
    Entry("pyramid_residual", TAPERED, "experts.residual:PyramidResidual", "PR-MoE, Rajbhandari 2022", BANK),
    Entry("unequal_widths", DECODER, "experts.unequal:UnequalWidths", "HMoE, Wang 2024", BANK),
    Entry("nested", VISION, "experts.nested:Nested", "MoNE, Jain 2024", BANK),
    Entry("nested_by_priority", VISION, "experts.nested:NestedByPriority", "MoNE, Jain 2024"),
    Entry("lora", DECODER, "experts.lora:MoLoRA", "MoLoRA, Zadouri 2023", BANK),
    Entry("lora_by_layer", TAPERED, "experts.lora:MoLA", "MoLA, Gao 2024", BANK),
    Entry("lora_by_instance", FUSION, "experts.lora:Octavius", "Octavius, Chen 2023"),
    Entry("rank_one", FUSION, "experts.lora:RankOne", "MoR1E, Liu 2024"),
    Entry("soft_lora", VISION, "experts.soft_lora:SoftLoRA", "Omni-SMoLA, Wu 2023"),
    Entry("multi_head", DECODER, "experts.multi_head:MultiHead", "MH-MoE, Wu 2024", BANK),
    Entry(
        "attention_experts",
        DECODER,
        "experts.attention_heads:MoA",
        "MoA 2022, JetMoE 2024",
    ),
    Entry("heads_by_choice", VISION, "experts.attention_heads:MoH", "MoH, Jin 2024"),
    Entry("switch_head", DECODER, "experts.attention_heads:SwitchHead", "SwitchHead, Csordás 2023"),
    Entry("transformers", FUSION, "experts.modality_blocks:MixtureOfTransformers", "MoT, Liang 2024"),
    Entry("multiway", FUSION, "experts.modality_blocks:Multiway", "BEiT-3, Wang 2022"),
    Entry("depths", FUSION, "experts.depth:TopOfSequence", "Mixture-of-Depths, Raposo 2024"),
    Entry("depths_foretold", DECODER, "experts.depth:Foretold", "Mixture-of-Depths, Raposo 2024"),
    Entry("mamba", STATE_SPACE, "experts.mamba:MixtureOfMamba", "Mixture-of-Mamba, Liang 2025"),
    Entry("convolutions", CONVOLUTION, "experts.convolution:MoECNN", "DeepMoE, Wang 2018"),
    Entry("mixed_kernels", CONVOLUTION, "experts.convolution:CondConv", "CondConv, Yang 2019"),
    Entry("single_neurons", DECODER, "experts.single_neuron:PEER", "PEER, He 2024"),
)
