"""How many targets the documents of a source have."""

from moejax.data.documents import Conversation, Documents
from moejax.data.token_shards import StoredTokens
from moejax.data.tokenizer import Tokenizer, encode_document


def count_targets(documents: Documents, tokenizer: Tokenizer) -> int:
    """The targets of all documents, as ``pipeline`` makes them: the tokens of each and its end; of
    a conversation all its tokens but the first. Reads all documents, unless their tokens are kept.
    """
    if isinstance(documents, StoredTokens):
        tokens, filled = documents.count()
        return tokens + filled
    count = 0
    for index in range(len(documents)):
        document = documents[index]
        tokens = len(encode_document(document, tokenizer)[0])
        if tokens:
            count += tokens + (-1 if isinstance(document, Conversation) else 1)
    return count
