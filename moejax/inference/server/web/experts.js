// The experts of tokens: their colours, the legend, and what is told of one token.

const experts = {
  count: 0, // of a layer, as /live tells it
  layers: 0,
  layer: 0,
  only: null, // the expert that the legend picks out
  chosen: null, // the token that is told of
};

function colourOf(expert) {
  if (expert < 0) return 'var(--soft)';
  if (experts.count <= 8 && expert < 8) return `var(--c${expert})`;
  return `hsl(${(expert * 137.508 + 210) % 360} 65% var(--light))`;
}

// [expert, weight, share of all weights] of each expert of a token in a layer, the largest first.
function choicesOf(token, layer) {
  const chosen = token.experts[layer] || [];
  const found = chosen.map((expert, i) => [expert, token.weights[layer][i]]).filter(([e]) => e >= 0);
  const all = found.reduce((sum, [, weight]) => sum + Math.abs(weight), 0);
  return found.map(([e, w]) => [e, w, all ? Math.abs(w) / all : 1 / found.length])
    .sort((one, other) => other[2] - one[2]);
}

// Bands of colour side by side, as wide as the weights.
function bands(choices, direction) {
  let at = 0;
  const stops = choices.map(([expert, , share]) => {
    const from = at;
    at += 100 * share;
    return `${colourOf(expert)} ${from.toFixed(1)}% ${at.toFixed(1)}%`;
  });
  return `linear-gradient(to ${direction}, ${stops.join(', ') || 'transparent, transparent'})`;
}

function paint(span) {
  const choices = choicesOf(span.token, experts.layer);
  span.style.setProperty('--first', choices.length ? colourOf(choices[0][0]) : 'transparent');
  span.style.setProperty('--bands', bands(choices, 'right'));
  const others = experts.only !== null && !choices.some(([expert]) => expert === experts.only);
  span.classList.toggle('other', others);
}

const spans = () => document.querySelectorAll('#log .t');

function paintAll() {
  spans().forEach(paint);
  drawLegend();
  tell(experts.chosen);
}

function chooseLayer(layer) {
  experts.layer = layer;
  byId('layer').value = layer;
  experts.only = null;
  paintAll();
}

// Of the routed layers, the number among all layers.
const nameOf = layer => live.layers[layer] ?? layer;

// As many layers as tokens have, in the box to choose from.
function setLayers(count) {
  if (count === experts.layers || !count) return;
  experts.layers = count;
  byId('layer').replaceChildren(...Array.from({length: count}, (_, i) => new Option(nameOf(i), i)));
  byId('layer').value = experts.layer = Math.min(experts.layer, count - 1);
}

const MOST = 12; // experts in the legend

function drawLegend() {
  const counts = new Map();
  const all = spans();
  for (const span of all) {
    for (const [expert] of choicesOf(span.token, experts.layer)) {
      counts.set(expert, (counts.get(expert) || 0) + 1);
    }
  }
  const sorted = [...counts].sort((one, other) => other[1] - one[1] || one[0] - other[0]);
  const legend = byId('legend'), focused = document.activeElement?.dataset?.expert;
  legend.replaceChildren(...sorted.slice(0, MOST).map(([expert, count]) => {
    const chip = document.createElement('button');
    chip.type = 'button';
    chip.className = 'chip';
    chip.dataset.expert = expert;
    chip.setAttribute('aria-pressed', experts.only === expert);
    const share = `${Math.round(100 * count / all.length)}%`;
    chip.title = `Expert ${expert}: one of the experts of ${share} of the tokens. Click to see these alone.`;
    chip.style.setProperty('--first', colourOf(expert));
    const number = document.createElement('b');
    number.textContent = expert;
    chip.append(number, ` ${share}`);
    chip.addEventListener('click', () => {
      experts.only = experts.only === expert ? null : expert;
      paintAll();
    });
    return chip;
  }));
  if (sorted.length > MOST) legend.append(`and ${sorted.length - MOST} more`);
  if (focused !== undefined) legend.querySelector(`[data-expert="${focused}"]`)?.focus();
}

// Once for all tokens that come before the page is drawn again.
function drawLegendSoon() {
  drawLegendSoon.frame ||= requestAnimationFrame(() => { drawLegendSoon.frame = 0; drawLegend(); });
}

const names = {'\n': '↵ new line', '\t': '⇥ tab', ' ': '␣ space', '': 'a part of a character'};

// What is known of a token: its experts in the chosen layer in words, and all layers as columns.
function tell(span) {
  document.querySelector('#log .now')?.classList.remove('now');
  experts.chosen = span;
  const detail = byId('detail');
  if (!span || !span.isConnected) {
    detail.replaceChildren(byId('detail-hint') || tell.hint);
    return;
  }
  span.classList.add('now');
  tell.hint ||= byId('detail-hint');
  const words = document.createElement('p'), quoted = document.createElement('b');
  const choices = choicesOf(span.token, experts.layer);
  const nouns = ['no expert', 'expert ', 'experts '];
  quoted.className = 'token';
  quoted.textContent = names[span.token.token] ?? span.token.token;
  words.append(quoted, ` layer ${nameOf(experts.layer)}: ${nouns[Math.min(2, choices.length)]}`);
  choices.forEach(([expert, weight], i) => {
    const name = document.createElement('span');
    name.className = 'expert';
    name.style.setProperty('--first', colourOf(expert));
    name.textContent = `${expert} × ${show(weight, choices.length > 4 ? 2 : 3)}`;
    words.append(i ? ', ' : '', name);
  });
  detail.replaceChildren(words, layersOf(span.token));
}

function layersOf(token) {
  const columns = document.createElement('div');
  columns.className = 'columns';
  token.experts.forEach((_, layer) => {
    const column = document.createElement('div'), choices = choicesOf(token, layer);
    column.style.background = bands(choices, 'bottom');
    column.title = `layer ${nameOf(layer)}: ${choices.map(([e, w]) => `${e} × ${show(w, 3)}`).join(', ')}`;
    column.classList.toggle('chosen', layer === experts.layer);
    if (token.experts.length * choices.length <= 24) column.textContent = choices.map(([e]) => e).join(' · ');
    column.addEventListener('click', () => chooseLayer(layer));
    columns.append(column);
  });
  columns.setAttribute('aria-hidden', 'true');
  return columns;
}

byId('layer').addEventListener('change', event => chooseLayer(Number(event.target.value)));
