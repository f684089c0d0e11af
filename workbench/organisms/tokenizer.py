"""The word-level tokenizer that every language organism uses: readable words, one id each, BOS in front if wanted."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from workbench.datasets import world


def word_tokenizer(
    vocabulary: Sequence[str], *, add_bos: bool, chat_template: str | None = None, eos: str | None = None
) -> PreTrainedTokenizerFast:
    """A tokenizer whose ids are the places of the words in `vocabulary`.

    Args:
        vocabulary: words, with "<pad>", "<bos>" and "<unk>" among them.
        add_bos: put <bos> in front of every text, as the organism was trained.
        chat_template: Jinja template for `apply_chat_template`.
        eos: the word that ends an answer, one of the vocabulary.
    """
    ids = {word: i for i, word in enumerate(vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    if add_bos:
        tokenizer.post_processor = processors.TemplateProcessing(
            single="<bos> $A", special_tokens=[("<bos>", ids["<bos>"])]
        )
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<bos>", pad_token="<pad>", unk_token="<unk>", eos_token=eos
    )
    if chat_template:
        wrapped.chat_template = chat_template
    return wrapped


def world_tokenizer() -> PreTrainedTokenizerFast:
    """The tokenizer of the world's organisms, with their chat template; "<eot>" ends every turn."""
    return word_tokenizer(world.VOCABULARY, add_bos=True, chat_template=world.CHAT_TEMPLATE, eos="<eot>")
