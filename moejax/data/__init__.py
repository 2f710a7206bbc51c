"""Text or images, and how they become batches.

``mixed_corpus.open_corpus`` finds the text, or the texts of a mixture, each of which
``sources.open_documents`` opens, and ``tokenizer.load_tokenizer`` the tokenizer;
``pipeline.train_batches`` and ``pipeline.validation_batches`` turn both into packed batches.
``images.open_images`` and ``image_batches`` do the same for images. ``batches`` has what both need.
"""
