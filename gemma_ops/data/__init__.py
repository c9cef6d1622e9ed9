"""Training data: from a person's files to examples, and from examples to the tokens that Gemma 4 reads.

chat.py         conversations to text and tokens, as Gemma 4 reads them; what carries loss
example.py      the contract of a row
row_files.py    raw rows from jsonl, json, csv, tsv, parquet, `datasets` folders and the Hub (line_reader.py, tables.py)
row_formats.py  layouts of a row; normal.py brings them into one spelling, import_rows.py joins the two
media_files.py  images and sounds that rows show (parts.py their spellings, pictures.py and sounds.py the files,
                named_files.py which there are, encoded.py their tokens)
preferences.py  the same for answers that were compared or judged; answers.py makes them tokens
documents.py    raw texts, for continued pre-training
row_tokens.py   rows as token ids and labels; arrow.py puts them on disk, answer_tables.py those of compared answers
"""
