"""Text or images, and how they become batches.

``sources.open_documents`` finds the text and ``tokenizer.load_tokenizer`` the tokenizer;
``pipeline.train_batches`` and ``pipeline.validation_batches`` turn both into packed batches.
``images.open_images`` and ``image_batches`` do the same for images. ``batches`` has what both need.
"""
