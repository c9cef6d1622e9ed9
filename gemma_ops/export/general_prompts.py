"""Prompts of many kinds that belong to no domain: what a file says to them shows whether a fit to the rows of a domain
cost general ability.

They stand in for the rows, too, where a model is exported without data.
"""

from __future__ import annotations

GENERAL_PROMPTS = (
    "Name three things a support agent should ask before closing a ticket.",
    'Return {"status": "ok"} and nothing else.',
    "Translate into French: The order arrives on Monday.",
    "What is 17 + 25?",
    "Summarise in one sentence: The meeting moved from 3 pm to 4 pm because the room was taken.",
    "List the days of the week, separated by commas.",
    "Write a polite reply to a customer whose parcel is late.",
    "Is the following sentence about billing or shipping? I was charged twice.",
    "Why is the sky blue? Answer for a ten-year-old.",
    "Write a Python function that returns the n-th Fibonacci number.",
    "What is the capital of Mongolia, and on which river does it lie?",
    "Correct the spelling: He recieved the pakage definately to late.",
    "Give me a recipe for lentil soup with five ingredients.",
    "Übersetze ins Englische: Der Zug hat heute leider zehn Minuten Verspätung.",
    "Explain the difference between a list and a tuple in Python.",
    "A train leaves at 9:40 and arrives at 13:05. How long does it travel?",
    "Write a haiku about the first snow.",
    "Which is larger, 3/7 or 4/9? Show how you know.",
    "¿Cuáles son los planetas del sistema solar, en orden?",
    "Turn this into a bullet list: apples and pears for Anna, bread for Tom, milk for all.",
    "What should I do when a colleague takes credit for my work?",
    "Write a SQL query that counts the orders of each customer in 2025.",
    "Who wrote Pride and Prejudice, and when was it published?",
    "Describe how a bicycle pump works in three sentences.",
    "以下を要約してください：明日の会議は午後三時から二階で行います。",
    "Classify the sentiment: The film was long, but I would watch it again.",
    "What happens to water at 100 degrees Celsius at sea level?",
    "Suggest a name for a bakery that opens only at night.",
    "Write the opposite of each word: early, heavy, generous, deep.",
    "Explain what an interest rate is to somebody who never had a bank account.",
    "Extract the date and the amount: On 4 May we received your payment of 120 euros.",
    "If all bloops are razzies and some razzies are lazzies, are some bloops surely lazzies?",
    "Draft an e-mail that declines an invitation to speak at a conference.",
    "What are the risks of reusing the same password?",
    "Formuleer deze zin beleefder: Stuur me het rapport nu.",
    "Convert 5 miles to kilometres, to one decimal.",
    "Write a bash command that finds all files larger than 100 MB below the current folder.",
    "Tell me a fact about octopuses that most people don't know.",
    "Continue the story: The lighthouse keeper had not spoken to anyone for a month when",
    "What is the difference between weather and climate?",
)
"""Forty prompts of one turn: questions, tasks, code, several languages."""
