"""A Qwen2-Audio of 1 MB with random weights: hears real audio, obeys the real protocol, says gibberish."""

from pathlib import Path

WIDTH = 64
SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|AUDIO|>", "<|audio_bos|>", "<|audio_eos|>")
TOKENS_PER_SECOND = 25
LONGEST_SECONDS = 30  # what follows is cut off by the processor, and nobody is told
SHORTEST = 8  # tokens of an answer: one in a hundred would be empty otherwise


def make(directory: Path, *, seed: int = 0) -> Path:
    """Write weights, tokenizer, feature extractor and chat template to ``directory``, from nothing.

    Sampling is switched on, as in the real model: the answers to one question differ.
    """
    import torch
    import transformers as t

    words = tokenizer()
    ends = [words.convert_tokens_to_ids(token) for token in ("<|im_end|>", "<|endoftext|>")]
    hearing = t.Qwen2AudioEncoderConfig(
        d_model=WIDTH,
        encoder_layers=1,
        encoder_attention_heads=2,
        encoder_ffn_dim=2 * WIDTH,
        num_mel_bins=128,
    )
    speaking = t.Qwen2Config(
        vocab_size=len(words),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        bos_token_id=None,
        eos_token_id=ends[0],
    )
    config = t.Qwen2AudioConfig(
        audio_config=hearing, text_config=speaking, audio_token_index=words.convert_tokens_to_ids("<|AUDIO|>")
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = t.Qwen2AudioForConditionalGeneration(config)
    model.generation_config = t.GenerationConfig(
        do_sample=True, min_new_tokens=SHORTEST, eos_token_id=ends, pad_token_id=ends[1]
    )
    model.save_pretrained(directory)
    extractor = t.WhisperFeatureExtractor(feature_size=128, chunk_length=LONGEST_SECONDS)
    t.Qwen2AudioProcessor(feature_extractor=extractor, tokenizer=words).save_pretrained(directory)
    return directory


def tokenizer():
    """One token for every byte, and the special ones."""
    import tokenizers
    import transformers
    from tokenizers import decoders, models, pre_tokenizers

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    words = tokenizers.Tokenizer(models.BPE({letter: k for k, letter in enumerate(letters)}, merges=[]))
    words.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    words.decoder = decoders.ByteLevel()
    words.add_special_tokens(list(SPECIAL))
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=words,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(SPECIAL),
    )
