"use strict";

/* One player for the whole page, and spectrograms of clips whose samples the page can read. */

function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [key, value] of Object.entries(properties)) {
    if (key.startsWith("aria-") || key === "role") made.setAttribute(key, value);
    else made[key] = value;
  }
  made.append(...children.filter((child) => child !== null));
  return made;
}

const player = new Audio();
player.preload = "none";
let playing = null;

function play(source, button) {
  if (playing === button && !player.paused) {
    player.pause();
    return;
  }
  if (playing) playing.textContent = "▶";
  playing = button;
  player.src = source;
  button.textContent = "❚❚";
  player.play().catch(() => { button.textContent = "✕"; button.title = "This audio cannot be played: " + readable(source); });
}

for (const event of ["ended", "pause"]) {
  player.addEventListener(event, () => { if (playing) playing.textContent = "▶"; });
}

function readable(source) {
  return source.startsWith("data:") ? "embedded audio" : decodeURIComponent(source);
}

/* Samples of embedded audio, or of linked audio where the page was served by a web server; else null. */
async function samplesOf(source) {
  let bytes;
  if (source.startsWith("data:")) {
    bytes = Uint8Array.from(atob(source.slice(source.indexOf(",") + 1)), (c) => c.charCodeAt(0)).buffer;
  } else if (location.protocol.startsWith("http")) {
    const answer = await fetch(source);
    if (!answer.ok) return null;
    bytes = await answer.arrayBuffer();
  } else {
    return null;
  }
  const decoded = await new OfflineAudioContext(1, 1, 16000).decodeAudioData(bytes);
  return decoded.getChannelData(0);
}

/* In-place fast Fourier transform of 2^n points. */
function transform(real, imaginary) {
  const n = real.length;
  for (let i = 1, j = 0; i < n; i++) {
    let bit = n >> 1;
    for (; j & bit; bit >>= 1) j ^= bit;
    j ^= bit;
    if (i < j) [real[i], real[j], imaginary[i], imaginary[j]] = [real[j], real[i], imaginary[j], imaginary[i]];
  }
  for (let length = 2; length <= n; length <<= 1) {
    const angle = (-2 * Math.PI) / length;
    for (let start = 0; start < n; start += length) {
      for (let k = 0; k < length / 2; k++) {
        const c = Math.cos(angle * k), s = Math.sin(angle * k), a = start + k, b = a + length / 2;
        const x = real[b] * c - imaginary[b] * s, y = real[b] * s + imaginary[b] * c;
        real[b] = real[a] - x; imaginary[b] = imaginary[a] - y;
        real[a] += x; imaginary[a] += y;
      }
    }
  }
}

/* Decibels over 60 below the loudest, 0 to 8 kHz upwards, time to the right. */
function drawSpectrogram(canvas, samples) {
  const size = 512, columns = 600, height = size / 2;
  const step = Math.max(1, (samples.length - size) / columns);
  const levels = new Float32Array(columns * height);
  let loudest = -Infinity;
  for (let column = 0; column < columns; column++) {
    const first = Math.floor(column * step), real = new Float32Array(size), imaginary = new Float32Array(size);
    for (let n = 0; n < size; n++) {
      real[n] = (samples[first + n] || 0) * (0.5 - 0.5 * Math.cos((2 * Math.PI * n) / size));
    }
    transform(real, imaginary);
    for (let k = 0; k < height; k++) {
      const level = 10 * Math.log10(real[k] ** 2 + imaginary[k] ** 2 + 1e-12);
      levels[column * height + k] = level;
      if (level > loudest) loudest = level;
    }
  }
  const style = getComputedStyle(document.documentElement);
  const [from, to] = ["--panel", "--ink"].map((name) => colour(style.getPropertyValue(name)));
  canvas.width = columns; canvas.height = height;
  const context = canvas.getContext("2d"), image = context.createImageData(columns, height);
  for (let column = 0; column < columns; column++) {
    for (let k = 0; k < height; k++) {
      const share = Math.max(0, 1 + (levels[column * height + k] - loudest) / 60);
      const at = ((height - 1 - k) * columns + column) * 4;
      for (let c = 0; c < 3; c++) image.data[at + c] = from[c] + (to[c] - from[c]) * share;
      image.data[at + 3] = 255;
    }
  }
  context.putImageData(image, 0, 0);
}

function colour(text) {
  return [1, 3, 5].map((at) => parseInt(text.trim().slice(at, at + 2), 16));
}
