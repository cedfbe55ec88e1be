"""Keys of foreign configurations: what changes an SAE's function is read or refused; what cannot is listed here.

A key that is in neither list is refused by name, unless its value is neutral (null, false, "", "none" or empty).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from attlas.errors import SAEFormatError


def words(text: str) -> frozenset[str]:
    """The keys in a text."""
    return frozenset(text.split())


# SAELens, all versions: where the activations came from, how it was trained, logged and stored. None is used at inference.
SAELENS_HARMLESS = words("""
    act_store_device activations_mixing_fraction adam_beta1 adam_beta2 autocast autocast_lm b_dec_init_method
    cached_activations_path checkpoint_path column_name compile_llm compile_sae dataset_path dataset_trust_remote_code
    dead_feature_estimation_method dead_feature_threshold dead_feature_window device disable_concat_sequences
    eval_batch_size_prompts eval_every_n_wandb_logs evals expansion_factor feature_reinit_scale feature_sampling_method
    feature_sampling_window finetuning_method finetuning_tokens from_pretrained_path hook_eval hook_layer hook_point_eval
    hook_point_layer is_dataset_tokenized llm_compilation_mode log_activations_store_to_wandb
    log_optimizer_state_to_wandb log_to_wandb log_weights_to_wandb logger lr lr_decay_steps lr_end lr_scheduler_name
    lr_warm_up_steps model_class_name model_from_pretrained_kwargs model_kwargs n_batches_for_norm_estimate
    n_batches_in_buffer n_checkpoints n_eval_batches n_restart_cycles name neuronpedia_id output_path prefetch_llm_batches
    prepend_bos resample_batches resume resume_from_checkpoint run_name sae_compilation_mode sae_lens_training_version
    sae_lens_version save_final_checkpoint seed seqpos_slice sequence_separator_token store_batch_size
    store_batch_size_prompts streaming tokens_per_buffer total_training_samples total_training_tokens train_batch_size
    train_batch_size_samples train_batch_size_tokens training_tokens unique_id use_cached_activations verbose wandb_entity
    wandb_id wandb_log_frequency wandb_project
    aux_loss_coefficient decoder_heuristic_init decoder_heuristic_init_norm decoder_init_norm decoder_orthogonal_init
    init_encoder_as_decoder_transpose jumprelu_bandwidth jumprelu_init_threshold jumprelu_sparsity_loss_mode
    jumprelu_ste_to_input jumprelu_tanh_scale l0_coefficient l0_warm_up_steps l1_coefficient l1_warm_up_steps lp_norm
    mse_loss_normalization noise_scale normalize_sae_decoder pre_act_loss_coefficient
    scale_sparsity_penalty_by_decoder_norm target_l0 topk_threshold_lr use_ghost_grads use_matryoshka_aux_loss
    use_sparse_activations
""")

# sparsify: training only, or without effect while gram_lookup is off.
SPARSIFY_HARMLESS = words("normalize_decoder multi_topk dtype gram_table_hash lookup_max_order")

# dictionary_learning's trainers. norm_factor is folded into the biases before the library saves.
DICTIONARY_HARMLESS = words("""
    trainer_class lr steps auxk_alpha warmup_steps decay_start threshold_beta threshold_start_step top_k_aux seed
    k_anneal_steps device layer wandb_name l1_penalty sparsity_penalty sparsity_warmup_steps resample_steps
    sparsity_function p_start p_end anneal_start anneal_end anneal_end_step sparsity_queue_length n_sparsity_updates
    bandwidth target_l0 group_fractions group_weights group_sizes initial_sparsity_penalty norm_factor lr_warmup_steps
""")
DICTIONARY_BUFFER = words("""
    d_submodule io n_ctxs refresh_batch_size out_batch_size device max_steps tokenizer remove_bos add_special_tokens
    model_name submodule_name
""")

# OpenMOSS's lm_saes and llamascopium: training, its start, and where it ran.
OPENMOSS_HARMLESS = words("""
    device seed dtype bias_init_method decoder_exactly_fixed_norm init_decoder_norm init_encoder_norm
    init_encoder_with_decoder_transpose lp l1_coefficient l1_coefficient_warmup_steps k_warmup_steps use_batch_norm_mse
    use_ghost_grads tp_size ddp_size use_triton_kernel sparsity_threshold_for_triton_spmm_kernel jumprelu_threshold_window
    jumprelu_threshold_grad_scale sae_pretrained_name_or_path strict_loading
""")

# The first hook_z SAEs: training and logging.
ORIGINAL_HARMLESS = words("""
    seed batch_size buffer_mult lr num_tokens beta1 beta2 dict_mult enc_dtype site layer device reinit resample_scheme
    anthropic_neuron_resample_scale dead_direction_cutoff re_init_every anthropic_resample_last resample_factor
    num_resamples wandb_project_name wandb_entity save_state_dict_every b_dec_init sched_type sched_epochs
    sched_lr_factor sched_warmup_epochs sched_finish anthropic_resample_batches eval_every model_batch_size buffer_size
    buffer_batches name contiguous test
""")


def neutral(value: Any) -> bool:
    """Whether a value says "nothing": null, false, "", "none" or an empty container."""
    return value is None or value is False or value in ("", "none") or (isinstance(value, list | dict) and not value)


def refuse_unknown(record: Mapping[str, Any], known: Collection[str], source: Path) -> None:
    """Raise for the first key that is not known and not neutral.

    Raises:
        SAEFormatError: names the key and its value.
    """
    for key, value in record.items():
        if key not in known and not neutral(value):
            shown = repr(value)
            raise SAEFormatError(
                f"'{source}' has {key}={shown if len(shown) <= 60 else shown[:57] + '...'}, which Attlas does not know and "
                "which may change what the SAE computes; delete the key if it only describes the training"
            )


def section(record: Mapping[str, Any], key: str, source: Path) -> dict[str, Any]:
    """The object under a key; empty where there is none."""
    value = record.get(key)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise SAEFormatError(f"'{source}' has {key}={value!r:.60}; it must be an object")
    return value


def whole(record: Mapping[str, Any], key: str, source: Path) -> int:
    """A whole number of at least 1."""
    value = record.get(key)
    if value is None:
        raise SAEFormatError(f"'{source}' lacks '{key}', which the SAE's function depends on; add it to the file")
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SAEFormatError(f"'{source}' has {key}={value!r:.60}; it must be a whole number of at least 1")
    return value


def flag(record: Mapping[str, Any], key: str, default: bool, source: Path) -> bool:
    """True or false; null is the default."""
    value = record.get(key)
    if value is None:
        return default
    if not isinstance(value, bool):
        raise SAEFormatError(f"'{source}' has {key}={value!r:.60}; it must be true or false")
    return value


def text(record: Mapping[str, Any], key: str, source: Path) -> str:
    """A string; null is ""."""
    value = record.get(key)
    if value is None:
        return ""
    if not isinstance(value, str):
        raise SAEFormatError(f"'{source}' has {key}={value!r:.60}; it must be a string")
    return value


def number(record: Mapping[str, Any], key: str, default: float, source: Path) -> float:
    """A finite number; null is the default."""
    value = record.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise SAEFormatError(f"'{source}' has {key}={value!r:.60}; it must be a finite number")
    return float(value)
