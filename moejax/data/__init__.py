"""Text and how it becomes batches: sources of documents, tokenizers, and the Grain pipeline.

``sources.open_documents`` finds the text, ``tokenizer.load_tokenizer`` the tokenizer, and
``pipeline.train_batches`` and ``pipeline.validation_batches`` turn both into packed batches.
"""
