"""What the study makes itself: python experiments/kinds/prepare.py --data DATA --out outputs/kinds/prepared

`prose`: the text that a decoder learns from (Wikipedia) and is scored on (the beginning of WikiText-2's test split, as
one document, its lines joined as they stand: 58 windows of 512 tokens of SmolLM2). `marian`: a Marian of 3 + 3 layers
with random weights, and a tokenizer of 8,000 pieces of English and German captions.
"""

import argparse
import json
from pathlib import Path

import torch
from datasets import load_dataset
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import MarianConfig, MarianMTModel, PreTrainedTokenizerFast

SCORED = 120_000  # characters of the text that a decoder is scored on


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    prose(arguments.data, arguments.out / "prose")
    marian(arguments.data, arguments.out / "marian")


def prose(data: Path, out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    train = load_dataset(str(data / "wikipedia-en-part"), split="train")["text"]
    test = "".join(load_dataset(str(data / "wikitext"), "wikitext-2-raw-v1", split="test")["text"])[:SCORED]
    for name, texts in {"train": train, "test": [test]}.items():
        lines = (json.dumps({"text": text}) + "\n" for text in texts)
        (out / f"{name}.jsonl").write_text("".join(lines), encoding="utf-8")


def marian(data: Path, out: Path) -> None:
    pairs = load_dataset(str(data / "multi30k"), split="train")
    raw = Tokenizer(models.BPE(unk_token="<unk>"))
    raw.normalizer = normalizers.NFKC()
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    special = ["<pad>", "</s>", "<unk>"]
    texts = [text for language in ("en", "de") for text in pairs[language]]
    raw.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=8000, special_tokens=special))
    end = ("</s>", raw.token_to_id("</s>"))
    raw.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A $B </s>", special_tokens=[end])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=128
    )
    torch.manual_seed(0)
    config = MarianConfig(
        vocab_size=len(tokenizer),
        d_model=256,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=1024,
        decoder_ffn_dim=1024,
        max_position_embeddings=128,
        dropout=0.1,
        scale_embedding=True,
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.pad_token_id,
        forced_eos_token_id=tokenizer.eos_token_id,
    )
    model = MarianMTModel(config)
    model.generation_config.bad_words_ids = None
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)


if __name__ == "__main__":
    main()
