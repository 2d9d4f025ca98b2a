"""A checkpoint in one GGUF file, as llama.cpp writes it.

header      metadata and table of tensors, checked before anything is believed
config      metadata -> the attributes of Hugging Face's config.json
tensors     llama.cpp's tensors -> Hugging Face's names and values, dequantized row by row
tokenizer   metadata -> tokenizer
"""
