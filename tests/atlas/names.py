"""What the attributes of configurations are called, by what they count. No architecture is named."""

from __future__ import annotations

import re

DEPTH = re.compile(
    r"^(n_layers?|num_layers|depth|num_blocks|n_blocks|num_hidden_layers|.*_(num_)?(hidden_)?layers|num_.*_layers"
    r"|.*_depth|num_encoder_blocks|num_hidden_groups|num_residual_layers|num_decoder_blocks|layers)$"
)
NOT_DEPTH = re.compile(
    r"feat_extract|adapter|feature_layer|window_layers|kv_shared|only_layers|replace|conv_layers|max_depth|min_depth|proj_layers"
)
HIDDEN = re.compile(
    r"^(d_model|n_embd|dim|width|channels_last|d_embed|embed_dim|hidden_dim|emb_dim|embedding_dim|model_dim|dim_model"
    r"|projection_size|.*hidden_size(_per_layer_input)?|.*hidden_dim|.*embed_dim|embedding_size|.*projection_dim|.*proj_dim|.*embedding_size"
    r"|.*pooler_output_size|.*_d_model|.*latent_dim|d_latents?|bottleneck_dim|output_dim|.*_width|shared_hidden"
    r"|feature_size|fpn_feature_size|mask_feature_size|decoder_channels|.*hidden_channels|latent_channels|.*fusion_hidden_size"
    r"|d_conv_out|.*codebook_dim|true_hidden_size|out_dim|query_dim|kv_dim|.*_hidden|llm_dim|output_channels|.*initial_channel|.*base_dim)$"
)
INNER = re.compile(
    r"^(.*intermediate_size|.*intermediate_dim|.*ffn_dim|.*ff_dim|d_ff|n_inner|mlp_dim|.*mlp_hidden_size|.*mlp_dim|dim_feedforward"
    r"|.*ffn_hidden_size|.*feedforward_dim|.*feedforward_size|d_inner|.*ffn_size|inner_dim|classifier_proj_size|.*feed_forward_size)$"
)
HEAD_DIM = re.compile(
    r"^(.*head_dim|d_kv|d_head|attention_head_size|kv_channels|dim_head|.*_head_size|head_size)$"
)
KEY_HEADS = re.compile(
    r"^(.*num_(attention_)?key_value_heads|n_kv_heads|num_kv_heads|.*_kv_heads|.*num_key_heads|multi_query_group_num)$"
)
HEAD_COUNT = re.compile(r"^(n_heads?|.*num_(.*_)?heads|.*attention_heads|.*_n_heads|heads|.*nheads)$")
RANK = re.compile(r".*(lora_rank|low_rank(_dim)?|_rank)$")
VOCAB = re.compile(
    r"^(.*vocab_size(_per_layer_input)?|.*_vocab|.*vocab_sizes?|n_vocab|.*num_embeddings|codebook_size|n_tokens)$"
)
TOKEN = re.compile(r".*(token_id|token_index|_token|token_ids|_id|_ids)$")
LENGTH = re.compile(
    r"^(.*max_position_embeddings|n_positions|n_ctx|max_seq_len|max_seq(uence)?_length|seq_length|max_length|max_target_positions"
    r"|.*max_source_positions|max_.*positions|context_length|max_text_length|.*max_positions|sequence_length|max_sequence_length|block_size|num_position_embeddings)$"
)
IMAGE = re.compile(r"^((.*_)?image_size|spec_size|img_size|.*resolution|crop_size|input_size)$")
PATCH = re.compile(r"^(patch_size|.*_patch_size|tubelet_size)$")
EXPERTS = re.compile(
    r"^(.*num_(.*_)?experts|n_routed_experts|.*num_local_experts|num_experts_.*|moe_num_experts)$"
)
QUERIES = re.compile(
    r"^(num_queries|num_query_tokens|.*num_latents|num_.*queries|num_image_tokens|query_length|num_landmarks|num_object_queries)$"
)
WINDOW = re.compile(
    r"^(.*sliding_window(_size)?|local_attention|attention_window|.*chunk_size|.*chunk_length|index_topk)$"
)
SQUARE_WINDOW = re.compile(r"^(window_size|.*window_sizes?)$")
LAYER_INDEX = re.compile(r".*(_indexes|_indices|_layers|_idx|_layer_ids|insert_layer_id|_blocks)$")
PERIOD = re.compile(r".*(_interval|_period|_pattern|_frequency|_every_n_layers|_every|_step|_layer_k)$")
CHANNELS = re.compile(
    r".*(channels|hidden_sizes?|dims?|channel_list|dim_per_stage|conv_dim|planes|embed_dim)$"
)
STAGES = re.compile(
    r"^(depths?|.*_depths|blocks_per_stage|stage_num_blocks|num_blocks|layers|num_layers|stage_numb_of_layers|num_modules)$"
)
KEPT = re.compile(
    r"^(num_channels|in_channels|out_channels|audio_channels|num_labels|.*_groups|.*dropout.*|.*_prob|.*_std|.*kernel.*|.*stride.*)$"
)
PATCHES = re.compile(r"size|grid|patches|resolution|length|seq|tokens|position")
PROBABILITY = re.compile(r".*(dropout|layerdrop|_prob|pdrop|drop_path_rate|jitter.*)$")
