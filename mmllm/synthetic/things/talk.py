"""Plain talk without a video, which keeps a model able to speak while it learns to look: small questions and answers.

All texts were written for mmllm.
"""

from __future__ import annotations

TALK = (
    ("Hello!", "Hello! How can I help you?"),
    ("Good morning.", "Good morning! What would you like to know?"),
    ("How are you?", "I am well, thank you. What can I do for you?"),
    ("Who are you?", "I am a small model that looks at videos and says when something happens."),
    ("What can you do?", "I can answer questions about a video, and talk a little without one."),
    ("Can you see a video now?", "No, there is no video in our talk yet. Give me one, and I will look at it."),
    ("Thank you.", "You are welcome."),
    ("Goodbye!", "Goodbye, and have a good day."),
    ("What is a video?", "A video is a series of pictures that are shown one after another, often with sound."),
    ("What is a frame of a video?", "A frame is one of the still pictures of which a video is made."),
    ("How many seconds are in a minute?", "A minute has sixty seconds."),
    ("How many minutes are in an hour?", "An hour has sixty minutes."),
    ("How many hours does a day have?", "A day has twenty-four hours."),
    ("How many days are in a week?", "A week has seven days."),
    ("Which day comes after Monday?", "Tuesday comes after Monday."),
    ("Which month comes before June?", "May comes before June."),
    ("In which season do leaves fall?", "Leaves fall in autumn."),
    ("What is two plus three?", "Two plus three is five."),
    ("What is ten minus four?", "Ten minus four is six."),
    ("What is three times three?", "Three times three is nine."),
    ("What is half of twelve?", "Half of twelve is six."),
    ("Is seven larger than five?", "Yes, seven is larger than five."),
    ("Which is heavier, a feather or a stone?", "A stone is heavier than a feather of the same size."),
    ("What colour is grass?", "Grass is green."),
    ("What colour is the sky on a clear day?", "On a clear day the sky is blue."),
    ("What colour do you get from blue and yellow paint?", "Blue and yellow paint make green."),
    ("Name three fruits.", "Apples, pears and cherries are fruits."),
    ("Name two animals that live in water.", "Fish and dolphins live in water."),
    ("Name an animal that can fly.", "An owl can fly."),
    ("Which animal says meow?", "A cat says meow."),
    ("What do bees make?", "Bees make honey."),
    ("What do cows eat?", "Cows eat grass and hay."),
    ("How many legs does a spider have?", "A spider has eight legs."),
    ("How many wheels does a bicycle have?", "A bicycle has two wheels."),
    ("What is a fire engine for?", "A fire engine brings people, water and ladders to a fire."),
    ("What is an ambulance for?", "An ambulance takes ill or hurt people to a hospital."),
    ("What do you need an umbrella for?", "An umbrella keeps you dry when it rains."),
    ("What is a hammer used for?", "With a hammer you drive nails into wood."),
    ("What does a thermometer show?", "A thermometer shows how warm or cold it is."),
    ("Where do penguins live?", "Most penguins live in the cold south of the world."),
    ("Why do we sleep?", "Sleep lets the body and the mind rest and recover."),
    ("What is ice?", "Ice is frozen water."),
    ("At how many degrees does water freeze?", "Water freezes at zero degrees Celsius."),
    ("What is steam?", "Steam is water that has become a gas because it is hot."),
    ("What does the sun give us?", "The sun gives us light and warmth."),
    ("What can you see in the sky at night?", "At night you can see the moon and the stars."),
    ("What is the largest animal?", "The blue whale is the largest animal."),
    ("Which meal do people eat in the morning?", "In the morning people eat breakfast."),
    ("How do you make tea?", "Pour hot water over tea leaves, wait a few minutes, and take the leaves out."),
    ("How do you boil an egg?", "Put the egg into boiling water and take it out after about eight minutes."),
    ("What is bread made of?", "Bread is made of flour, water, salt and yeast."),
    ("Tell me something short about cats.", "Cats are quiet hunters that sleep for most of the day."),
    ("Tell me something short about trains.", "Trains run on rails and can carry many people at once."),
    ("Write a sentence with the word kite.", "The kite rose high above the field."),
    ("Write a sentence with the words dog and ball.", "The dog ran after the red ball."),
    ("What is the opposite of hot?", "The opposite of hot is cold."),
    ("What is the opposite of early?", "The opposite of early is late."),
    ("What is another word for quick?", "Another word for quick is fast."),
    ("How do you spell cat?", "Cat is spelled C, A, T."),
    ("What does to count mean?", "To count means to find out how many there are."),
)
"""Questions and their answers."""


def talk_rows() -> list[dict[str, str]]:
    """The talk as rows that `mmllm finetune` reads: dialogues of text alone."""
    return [
        {"id": f"talk_{number}", "question": question, "answer": answer, "family": "talk"}
        for number, (question, answer) in enumerate(TALK)
    ]
