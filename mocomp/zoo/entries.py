"""The table of the zoo: a line for each mechanism and its host.

The host is that of the mechanism's paper, or the nearest to it. Mechanisms of experts are a table of their own, in
`experts/entries.py`.
"""

from __future__ import annotations

from mocomp.zoo import Entry
from mocomp.zoo.experts.entries import ENTRIES as EXPERTS

DECODER, ENCODER, VISION = "decoder:Decoder", "encoder:Encoder", "vision:Vision"
FUSION, SEQ2SEQ = "early_fusion:EarlyFusion", "encoder_decoder:EncoderDecoder"
CONVOLUTION, STATE_SPACE = "convolutional:Convolutional", "state_space:StateSpace"

ROUTING = (
    Entry("softmax_topk", DECODER, "routing.softmax_topk:Renormalised", "Mixtral, Jiang 2024", "softmax_topk + glu"),
    Entry("softmax_topk_plain", VISION, "routing.softmax_topk:Plain", "V-MoE, Riquelme 2021", "softmax_topk + ffn"),
    Entry("switch", SEQ2SEQ, "routing.softmax_topk:Switch", "Switch Transformer, Fedus 2021", "softmax_topk + ffn"),
    Entry("switch_state_space", STATE_SPACE, "routing.softmax_topk:Switch", "MoE-Mamba, Pióro 2024", "softmax_topk + ffn"),
    Entry("topk_softmax", DECODER, "routing.softmax_topk:TopKSoftmax", "Shazeer 2017", "softmax_topk + ffn"),
    Entry("second_threshold", SEQ2SEQ, "routing.softmax_topk:SecondThreshold", "ST-MoE, Zoph 2022", "topk_threshold + ffn"),
    Entry("gumbel_softmax", VISION, "routing.softmax_topk:GumbelSoftmax", "GG MoE 2025", "gumbel_softmax + ffn"),
    Entry("sigmoid_groups", DECODER, "routing.sigmoid_groups:SigmoidGroups", "DeepSeek-V3 2024", "sigmoid_topk + glu"),
    Entry("sparse_mixer", DECODER, "routing.sparse_mixer:SparseMixer", "SparseMixer, Liu 2024", "sparse_mixer + glu"),
    Entry("modality_groups", FUSION, "routing.modality:ModalityGroups", "MoMa, Lin 2024"),
    Entry("expert_choice", ENCODER, "routing.expert_choice:ExpertChoice", "Zhou 2022", "expert_choice + ffn"),
    Entry("patch_choice", CONVOLUTION, "routing.expert_choice:PatchChoice", "pMoE, Chowdhury 2023"),
    Entry("auxiliary", FUSION, "routing.expert_choice:Auxiliary", "MoMa, Lin 2024"),
    Entry("top_p", DECODER, "routing.probability_mass:TopP", "Huang 2024", "top_p + glu"),
    Entry("small_experts", SEQ2SEQ, "routing.probability_mass:SmallExperts", "XMoE, Yang 2024", "top_p + glu"),
    Entry("adaptive_gap", ENCODER, "routing.probability_mass:AdaptiveGap", "Li 2023", "gap + ffn"),
    Entry("cosine_topk", VISION, "routing.cosine:CosineTopK", "GMoE, Li 2022", "softmax_topk + ffn"),
    Entry("cosine_threshold", FUSION, "routing.cosine:CosineThreshold", "DynMoE, Guo 2024", "cosine_threshold + ffn"),
    Entry("null_experts", DECODER, "routing.any_number:NullExperts", "AdaMoE, Zeng 2024"),
    Entry("relu_routing", DECODER, "routing.any_number:ReLURouting", "ReMoE, Wang 2024", "relu + glu"),
    Entry("soft_slots", VISION, "routing.mixed_tokens:SoftSlots", "Soft MoE, Puigcerver 2023", "dispatched + ffn"),
    Entry("token_mixing", DECODER, "routing.mixed_tokens:MixtureOfTokens", "Antoniak 2023", "dispatched + ffn"),
    Entry("product_key", DECODER, "routing.product_key:ProductKeys", "Lample 2019"),
    Entry("cartesian", DECODER, "routing.two_stages:Cartesian", "CartesianMoE, Su 2024", "softmax_topk + glu"),
    Entry("two_level", ENCODER, "routing.two_stages:TwoLevel", "SMILE, He 2022"),
    Entry("dselect_k", CONVOLUTION, "routing.two_stages:DSelectK", "DSelect-k, Hazimeh 2021"),
    Entry("smear", SEQ2SEQ, "routing.weight_ensemble:Smear", "SMEAR, Muqeeth 2023"),
    Entry("weight_ensemble", VISION, "routing.weight_ensemble:WeightEnsemble", "WEMoE, Tang 2024"),
    Entry("hash", DECODER, "routing.table:Hash", "Hash layers, Roller 2021"),
    Entry("distilled_table", DECODER, "routing.table:Distilled", "StableMoE, Dai 2022"),
    Entry("masked_by_id", DECODER, "routing.table:Masked", "MaskMoE, Su 2024"),
    Entry("task_level", SEQ2SEQ, "routing.given_ids:TaskLevel", "Kudugunta 2021"),
    Entry("cluster_level", FUSION, "routing.given_ids:ClusterLevel", "MoCLE, Gou 2023"),
    Entry("shared_embedding", ENCODER, "routing.side_input:SharedEmbedding", "SpeechMoE, You 2021"),
    Entry("domain_embedding", ENCODER, "routing.side_input:DomainEmbedding", "SpeechMoE2, You 2021"),
    Entry("recurrent", DECODER, "routing.across_layers:Recurrent", "RMoE, Qiu 2024"),
    Entry("pre_gated", DECODER, "routing.across_layers:PreGated", "Pre-gated MoE, Hwang 2023"),
    Entry("decoupled", DECODER, "routing.across_layers:Decoupled", "Read-ME, Cai 2024"),
    Entry("codebook", VISION, "routing.experts_decide:Codebook", "VQMoE, Do 2024"),
    Entry("self_selected", DECODER, "routing.experts_decide:SelfSelected", "Autonomy-of-Experts, Lv 2025"),
    Entry("competition", VISION, "routing.experts_decide:Competition", "CompeteSMoE, Pham 2024"),
    Entry("gshard_capacity", SEQ2SEQ, "routing.capacity:GShard", "GShard, Lepikhin 2020", "capacity + ffn"),
    Entry("batch_priority", VISION, "routing.capacity:BatchPriority", "V-MoE, Riquelme 2021", "batch_priority + ffn"),
    Entry("capacity_reroute", DECODER, "routing.capacity:Reroute", "Capacity-aware inference, He 2025"),
    Entry("per_image", VISION, "routing.whole_input:PerImage", "Mobile V-MoE, Daxberger 2023", "per_image + ffn"),
    Entry("per_image_convolutional", CONVOLUTION, "routing.whole_input:PerImage", "Daxberger 2023", "per_image + ffn"),
    Entry("random_fixed", DECODER, "routing.whole_input:RandomFixed", "SMoE-Dropout, Chen 2023", "softmax_topk + ffn"),
)

ENTRIES = {entry.name: entry for entry in (*ROUTING, *EXPERTS)}
"""All lines of both tables by name."""
