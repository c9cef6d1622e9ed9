"""What takes each trap's fix out, and the tests that must fail then.

A mutant replaces one text that stands exactly once in one file. `tests` are node ids below `tests/`; each alone must
pass without the mutant and fail with it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One fix of a trap, taken out."""

    trap: str
    """A code of `gemma_ops.family.TRAPS`."""
    file: str
    """Below `gemma_ops/`."""
    old: str
    new: str
    tests: tuple[str, ...]


_BF16 = '    dtype = torch.float32 if weights == "fp32" else torch.bfloat16\n'
_LAUNCHED = "training/test_launch_same.py::"

MUTANTS = (
    Mutant(
        "reentrant-checkpointing", "kernels/install.py",
        "again = partial(checkpoint, use_reentrant=False,", "again = partial(checkpoint, use_reentrant=True,",
        ("kernels/test_recompute.py::test_gradients_are_those_of_keeping_everything",),
    ),
    Mutant(
        "reentrant-checkpointing", "training/arguments.py",
        '    "gradient_checkpointing_kwargs": "reentrant checkpointing corrupts gradients of layers that share keys '
        'and values",\n', "",
        ("training/test_sft.py::test_trl_keys_are_checked[gradient_checkpointing_kwargs-reentrant]",),
    ),
    Mutant(
        "prepare-for-kbit", "modeling/adapters.py",
        "tuned = peft.get_peft_model(model, config)",
        "tuned = peft.get_peft_model(getattr(peft, 'prepare_model_for_kbit' + '_training')(model), config)",
        ("modeling/test_adapters.py::test_an_adapter_leaves_the_base_in_its_types",),
    ),
    Mutant(
        "experts-stay-bf16", "modeling/streaming.py",
        'if type(module).__name__.endswith("TextExperts"):', "if False:",
        ("modeling/test_nf4.py::test_4bit_lands_on_attention_mlp_and_experts_only[moe]",),
    ),
    Mutant(
        "experts-stay-bf16", "modeling/audit.py",
        "if (line != plan and not _on_host(line, plan)) or components.count(line.component) > 1:", "if False:",
        ("modeling/test_nf4.py::test_experts_left_in_bf16_are_refused",),
    ),
    Mutant(
        "4bit-router", "modeling/audit.py",
        "return re.fullmatch(family.LORA_TARGETS, name) is not None",
        'return re.fullmatch(family.LORA_TARGETS, name) is not None or name.endswith("router.proj")',
        ("modeling/test_nf4.py::test_4bit_lands_on_attention_mlp_and_experts_only[moe]",),
    ),
    Mutant(
        "4bit-skip-list", "family/__init__.py",
        '    "model.vision_tower", "model.audio_tower",', '    "vision_tower", "audio_tower",',
        ("family/test_counts.py::test_skip_list_leaves_exactly_attention_and_mlp_for_4bit[E2B]",),
    ),
    Mutant(
        "loss-under-accumulation", "training/trainer.py",
        "loss = self._score(model, arguments, inputs.divisor).loss * world",
        'loss = self._score(model, arguments, float(len(inputs.passes) * len(arguments["where"]))).loss * world',
        (("training/test_sft.py::test_however_it_is_computed_the_result_is_the_same[{'packing': False, "
         "'micro_batch': 2}]"),),
    ),
    Mutant(
        "fp32-default", "modeling/load.py",
        _BF16, "    dtype = torch.float32\n",
        ("modeling/test_loading.py::test_loading_equals_transformers_own",),
    ),
    Mutant(
        "fp16", "training/arguments.py",
        '    "fp16": "Gemma 4\'s activations overflow in float16",\n', "",
        ("training/test_sft.py::test_trl_keys_are_checked[fp16-overflow]",),
    ),
    Mutant(
        "sdpa-string", "kernels/install.py",
        'base.set_attn_implementation({"text_config": name})', "base.set_attn_implementation(name)",
        ("kernels/test_install.py::test_attention_is_set_on_the_language_model_alone",),
    ),
    Mutant(
        "flash-attention", "kernels/attention_packed.py",
        "    if half and query.shape[-1] <= FLASH_WIDTH:\n", "    if half:\n",
        ("kernels/test_attention.py::test_the_gpu_form_follows_shapes_and_is_never_taken_here",),
    ),
    Mutant(
        "text-class-on-full-checkpoint", "modeling/streaming.py",
        '        ("has no value for", missing),\n', "",
        ("modeling/test_loading.py::test_a_parameter_without_its_value_is_refused_before_anything_is_read",),
    ),
    Mutant(
        "text-class-on-full-checkpoint", "modeling/load.py",
        "model = streaming.build_streamed(getattr(transformers, architecture), config, dtype)",
        "model = streaming.build_streamed(transformers.Gemma4ForCausalLM, config.get_text_config(), dtype)",
        ("modeling/test_loading.py::test_text_only_load_equals_the_whole_model",),
    ),
    Mutant(
        "packing-with-mask", "training/forward_inputs.py",
        "return found | ({BOUNDS: starts} if self.bounds else {})",
        'return found | {"attention_mask": torch.ones_like(found["input_ids"])}',
        ("training/test_steps.py::test_a_packed_pass_scores_each_document_by_itself",),
    ),
    Mutant(
        "lora-everywhere", "family/__init__.py",
        r'LORA_TARGETS = r"(?:model\.)?(?:language_model\.)?layers\.\d+\.(?:self_attn',
        r'LORA_TARGETS = r".*layers\.\d+\.(?:per_layer_input_gate|self_attn',
        ("modeling/test_adapters.py::test_lora_stays_in_the_language_model",),
    ),
    Mutant(
        "lost-head-dims", "export/folder.py",
        '    text["global_head_dim"] = dimension\n', "",
        ("export/test_merging.py::test_head_sizes_get_the_spelling_that_is_missing",),
    ),
    Mutant(
        "lost-head-dims", "export/folder.py",
        '    text["num_global_key_value_heads"] = facts.get("num_key_value_heads")\n', "",
        ("export/test_merging.py::test_head_sizes_get_the_spelling_that_is_missing",),
    ),
    Mutant(
        "merge-into-4bit", "export/checkpoint.py",
        'if "quantization_config" in self.config or odd:', "if odd:",
        ("export/test_merging.py::test_a_quantized_checkpoint_is_no_source",),
    ),
    Mutant(
        "merge-into-4bit", "export/checkpoint.py",
        'if "quantization_config" in self.config or odd:', 'if "quantization_config" in self.config:',
        ("export/test_merging.py::test_packed_weights_are_refused_whatever_the_config_says",),
    ),
    Mutant(
        "merge-into-4bit", "modeling/expert_lora.py",
        "        if nf4.is_4bit(self.get_param()):\n            raise", "        if False:\n            raise",
        ("modeling/test_expert_lora.py::test_merging_into_4bit_experts_is_refused_and_into_dense_ones_is_exact",),
    ),
    Mutant(
        "merge-into-4bit", "modeling/load.py",
        'if "quantization_config" in body and not packed:', "if False:",
        ("modeling/test_loading.py::test_a_quantized_checkpoint_is_refused",),
    ),
    Mutant(
        "empty-thought", "data/template.py",
        'return plain.replace(_SWITCH, _SWITCH.replace("false", "true")) if empty_thought else plain', "return plain",
        ("data/test_one_prompt.py::test_the_larger_sizes_show_an_empty_thought_at_the_prompts_end_alone",),
    ),
    Mutant(
        "empty-thought", "data/example_steps.py",
        "if _begins(made[i].ids, whole.ids[:start])), None)", "if True), None)",
        ("data/test_one_prompt.py::test_every_answer_is_learned_after_the_published_prompt",),
    ),
    Mutant(
        "packed-images", "training/media_sft.py",
        'return text.get("use_bidirectional_attention") != "vision"', "return True",
        ("training/test_media_training.py::test_rows_with_images_lose_what_each_loses_alone",),
    ),
    Mutant(
        "packed-images", "kernels/attention_spans.py",
        "        starts[span.row, span.k0] = vision[span.row, span.k0]\n", "        pass\n",
        ("kernels/test_attention.py::test_images_that_touch_at_a_border_are_two",),
    ),
    Mutant(
        "no-video-token-types", "training/media_collator.py",
        'return {"mm_token_type_ids": torch.from_numpy(types), **join_media(seen)}', "return join(seen)",
        ("training/test_media_training.py::test_token_types_always_go_along_and_matter_where_images_are_seen_whole",),
    ),
    Mutant(
        "mean-of-means", "training/trainer.py",
        'metrics = {f"{kwargs.get(\'metric_key_prefix\', \'eval\')}_loss": float(sums[0] / sums[1])}',
        'metrics = {"eval_loss": float(sum(sum(self._score(model, a, b.divisor).loss.item() for a in b.passes) '
        "for b in dataloader) / len(list(dataloader)))}",
        ("training/test_sft.py::test_validation_weighs_tokens_and_not_batches",),
    ),
    Mutant(
        "neftune-under-packing", "training/neftune.py",
        "torch.sqrt(self._lengths.float() * output.shape[-1])",
        "torch.sqrt(torch.full_like(self._lengths, output.shape[1]).float() * output.shape[-1])",
        ("training/test_losses.py::test_noise_is_scaled_by_the_document_whatever_it_is_packed_with",),
    ),
    Mutant(
        "autocast-copies", "training/arguments.py",
        'return settings.weights == "bf16" and (settings.tune == "full" or settings.kernels.lora == "peft")',
        'return settings.weights == "bf16"',
        ("training/test_sft.py::test_fused_adapters_compute_without_autocast",),
    ),
    Mutant(
        "two-trainings-one-folder", "training/launch/strategy.py",
        'if seen != size or (size > 1 and kind == "NO"):', "if False:",
        (_LAUNCHED + "test_processes_that_would_train_apart_are_refused",),
    ),
    Mutant(
        "fsdp-on-cpu", "training/launch/strategy.py",
        'if size > 1 and (launch.strategy == "fsdp") != (kind == "FSDP"):', "if False:",
        (_LAUNCHED + "test_a_strategy_that_is_ignored_is_refused",),
    ),
    Mutant(
        "sharded-state", "modeling/adapter_files.py",
        '    _check(final, sum(hasattr(module, "lora_A") for module in model.modules()), load_file(str(folder / '
        'WEIGHTS)))\n', "",
        (_LAUNCHED + "test_an_adapter_that_was_not_saved_is_noticed",),
    ),
    Mutant(
        "sharded-state", "training/launch/sharded.py",
        "return value.full_tensor() if is_sharded(value) else value",
        "return value.to_local() if is_sharded(value) else value",
        (_LAUNCHED + "test_two_processes_are_one[moe-fsdp]",),
    ),
    Mutant(
        "uint8-storage", "modeling/load.py",
        "torch.bfloat16 if sharded else torch.uint8", "torch.uint8",
        (_LAUNCHED + "test_four_bits_are_sharded_and_the_same",),
    ),
    Mutant(
        "duplicate-head", "modeling/full.py",
        "learned = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}",
        "learned = {name: p for name, p in model.named_parameters(remove_duplicate=False) if p.requires_grad}",
        ("modeling/test_full.py::test_trained_saved_and_merged_is_the_trained_model",),
    ),
    Mutant(
        "image-loss", "data/encoded.py",
        "        loss += [False] * (count + 2)\n", "        loss += [True] * (count + 2)\n",
        ("training/test_media_training.py::test_soft_tokens_are_never_scored",),
    ),
    Mutant(
        "expert-adapters-on-nf4", "modeling/adapters.py",
        "    if settings.experts:\n        expert_lora.inject(tuned, config)\n",
        "    if settings.experts and not getattr(model, 'is_loaded_in_4bit', False):\n        "
        "expert_lora.inject(tuned, config)\n",
        ("modeling/test_expert_lora.py::test_gradients_equal_pefts_on_the_dense_model[4bit-8-False]",),
    ),
)  # fmt: skip
