"""OpenAI's Responses API, translated to chats and back: `to_chat` with `items` and `tools` (what is asked), `output`,
`from_chat`, `events` and `ended` (what is answered), `asked` (what is kept of a request), `chain` (the conversation behind
one), `drafting` (a request comes in), `exchange` and `door` (HTTP). What is translated and what is refused is listed in
docs/responses.md.
"""
