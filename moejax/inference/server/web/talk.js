// The conversation, or the text that is continued.

const talk = {
  chat: false,
  messages: [], // of the conversation, as the server wants them
  whole: '', // the text so far, its beginning included
  stopping: null, // the AbortController of the answer that is on its way
};

function setMode(chat) {
  talk.chat = chat;
  byId('prompt-label').textContent = chat ? 'Message' : 'The beginning of a text';
  byId('prompt').placeholder = chat ? 'Write a message' : 'Write the beginning of a text: the model continues it';
  byId('send').textContent = chat ? 'Send' : 'Continue';
  byId('talk-title').textContent = chat ? 'Conversation' : 'Text to be continued';
}

function beginAnew() {
  talk.stopping?.abort();
  talk.messages = [];
  talk.whole = '';
  experts.only = null;
  for (const message of document.querySelectorAll('#log .message')) message.remove();
  byId('empty').hidden = false;
  byId('trouble').textContent = '';
  for (const id of ['more', 'clear', 'experts']) byId(id).hidden = true;
  tell(null);
}

const number = id => byId(id).value === '' ? undefined : Number(byId(id).value);

function bodyOf(chat) {
  const body = {
    max_tokens: number('tokens'), temperature: number('temperature'), top_p: number('top-p'),
    seed: number('seed'), stream: true, moejax_routes: live.layers.length > 0 || undefined,
  };
  return chat ? {...body, messages: talk.messages} : {...body, prompt: talk.whole};
}

async function answer(box, chat) {
  const made = new Answer(box), stopping = new AbortController();
  talk.stopping = stopping;
  box.classList.add('coming');
  box.setAttribute('aria-busy', 'true');
  byId('trouble').textContent = '';
  setBusy(true);
  let whole = false;
  try {
    const path = chat ? 'v1/chat/completions' : 'v1/completions';
    for await (const part of readParts(await ask(path, bodyOf(chat), stopping.signal))) {
      for (const choice of part.choices) {
        made.add((chat ? choice.delta.content : choice.text) || '', choice.moejax_routes || []);
        if (choice.moejax_routes) { byId('experts').hidden = false; drawLegendSoon(); }
        toEnd(false);
      }
    }
    whole = true;
  } catch (error) {
    if (error.name !== 'AbortError') complain(error);
  }
  made.end();
  box.classList.remove('coming');
  box.removeAttribute('aria-busy');
  if (talk.stopping === stopping) {
    talk.stopping = null;
    setBusy(false);
    say(whole ? `The model: ${made.text}` : 'The answer has ended early.');
  }
  return made;
}

function complain(error) {
  const words = error instanceof Refused ? error.message
    : error instanceof TypeError ? 'the server does not answer. Is it still running?' : error.message;
  byId('trouble').textContent = capital(words);
}

function setBusy(busy) {
  byId('send').disabled = busy;
  byId('stop').hidden = !busy;
  byId('clear').hidden = busy;
  byId('more').hidden = busy || talk.chat || !talk.whole;
}

async function send() {
  const text = byId('prompt').value;
  if (talk.stopping || !text.trim()) return;
  if (talk.chat) {
    talk.messages.push({role: 'user', content: text});
    const asked = addMessage('user', text);
    byId('prompt').value = '';
    const messages = talk.messages, box = addMessage('model', ''), made = await answer(box, true);
    if (messages !== talk.messages) return; // it was begun anew
    if (made.text) messages.push({role: 'assistant', content: made.text});
    else { // nothing came: the message is there to be sent again
      messages.pop();
      asked.closest('article').remove();
      box.closest('article').remove();
      byId('prompt').value ||= text;
      byId('empty').hidden = messages.length > 0;
    }
  } else {
    beginAnew();
    talk.whole = text;
    const box = addMessage('text', '');
    addPart(box, text, 'given');
    await goOn(box);
  }
}

function addPart(box, text, kind) {
  const part = document.createElement('span');
  part.className = kind;
  part.textContent = text;
  box.append(part);
  return part;
}

async function goOn(box) {
  if (talk.stopping) return;
  const before = talk.whole, made = await answer(addPart(box, '', 'made'), false);
  if (talk.whole === before) talk.whole = before + made.text;
  byId('more').hidden = talk.chat || !talk.whole;
}

byId('form').addEventListener('submit', event => { event.preventDefault(); send(); });
byId('more').addEventListener('click', () => goOn(document.querySelector('#log .message .said')));
byId('stop').addEventListener('click', () => { talk.stopping?.abort(); byId('prompt').focus(); });
byId('clear').addEventListener('click', () => { beginAnew(); byId('prompt').focus(); });
const touched = matchMedia('(pointer: coarse)'); // its keyboard has no Shift+Enter
byId('prompt').addEventListener('keydown', event => {
  if (touched.matches) return;
  if (event.key !== 'Enter' || event.shiftKey || event.isComposing) return;
  event.preventDefault();
  byId('form').requestSubmit();
});
for (const radio of document.querySelectorAll('[name=mode]')) {
  radio.addEventListener('change', () => { beginAnew(); setMode(radio.value === 'chat'); });
}
