// The vision half of a package in a browser, with onnxruntime-web alone: front graph, encoder, merger.
//
// The counterpart of `see` in ../ask_package.py: everything it needs to know of a package stands in its hvlc.json.
// It trusts the package as the page trusts its own script: serve packages that you built or verified.

const SCALE_OF_COMPRESSOR = 0, FULL_SIZE = 1;  // 0 asks the resolution compressor

/** uint8 [height, width, 3] of an image file: upright, transparency on white, colors as they are stored. */
export async function decodePixels(blob) {
  const bitmap = await createImageBitmap(blob, { imageOrientation: "from-image", colorSpaceConversion: "none" });
  const canvas = new OffscreenCanvas(bitmap.width, bitmap.height);
  const context = canvas.getContext("2d", { willReadFrequently: true });  // stays on the processor: exact
  context.fillStyle = "white";
  context.fillRect(0, 0, canvas.width, canvas.height);
  context.drawImage(bitmap, 0, 0);
  const { data, width, height } = context.getImageData(0, 0, canvas.width, canvas.height);
  const pixels = new Uint8Array(width * height * 3);
  for (let from = 0, to = 0; from < data.length; from += 4) {
    pixels[to++] = data[from];
    pixels[to++] = data[from + 1];
    pixels[to++] = data[from + 2];
  }
  return { pixels, width, height };
}

/** A package below an address. Graphs are opened on demand, and one encoder at a time is held. */
export class Package {
  /**
   * @param ort the module onnxruntime-web
   * @param address of the package's directory, ending with a slash
   */
  static async open(ort, address) {
    const manifest = await (await get(new URL("hvlc.json", address))).json();
    return new Package(ort, address, manifest);
  }

  constructor(ort, address, manifest) {
    Object.assign(this, { ort, address, manifest });
    this.times = {};  // milliseconds of the last image, by step
    this.encoder = null;
    this.sessions = new Map();
  }

  /**
   * Visual tokens of an image.
   *
   * @param image `{ pixels, width, height }`, as `decodePixels` answers
   * @param encoder its name; by the package's policy when null
   * @param compress whether the resolution compressor chooses the scale
   * @param maxVisualTokens bound of this image; the package's when null
   * @param question token ids of the question, for a compressor that reads it
   * @param stated `{ task_tag, device_class, latency_ms }` of the request, for the policy; each may be absent
   * @returns features float32 [visual tokens, hidden], ids int64 that stand for the image in the prompt, grid int64
   *     [2], scale, encoder, pieces and times
   */
  async see(image, { encoder = null, compress = true, maxVisualTokens = null, question = [], stated = {} } = {}) {
    this.times = {};
    const { images, components } = this.manifest;
    const front = await this.#front(image, { compress, maxVisualTokens, question });
    const ids = front.image_ids.data;
    const tokens = ids.reduce((sum, id) => sum + (Number(id) === images.token ? 1 : 0), 0);
    const statistics = {
      visual_tokens: tokens, pieces: front.pixel_values.dims[0] + (images.overview ? 1 : 0),
      pixels: image.width * image.height, scale: front.used_scale.data[0],
      aspect: Math.max(image.width, image.height) / Math.min(image.width, image.height),
    };
    const name = encoder ?? chooseEncoder(this.manifest.policy, statistics, stated);
    const merger = { grid: front.grid };
    const vision = await this.#encoder(name, front.pixel_values.dims);
    merger.tile_features = await this.#encode(vision, front.pixel_values);
    if (images.overview) {  // one more piece, of a shape of its own
      merger.overview_features = await this.#encode(vision, front.overview);
      merger.tile_features ??= new this.ort.Tensor("float32", [], [0, ...merger.overview_features.dims.slice(1)]);
    }
    const stitch = await this.#session(components.stitch.file);
    const merged = await this.#timed("stitch", () => stitch.run(merger));
    return {
      features: merged.image_features, ids, grid: front.grid.data, scale: front.used_scale.data[0],
      encoder: name, pieces: front.pixel_values.dims[0], times: { ...this.times },
    };
  }

  async #front({ pixels, width, height }, { compress, maxVisualTokens, question }) {
    const { Tensor } = this.ort, { images, components } = this.manifest;
    const asks = compress && images.resolution_compressor;
    const feeds = {
      image: new Tensor("uint8", pixels, [height, width, 3]),
      scale: new Tensor("float32", [asks ? SCALE_OF_COMPRESSOR : FULL_SIZE], [1]),
      max_visual_tokens: int64(Tensor, [maxVisualTokens ?? images.max_visual_tokens]),
    };
    if (images.question_tokens) feeds.question_ids = int64(Tensor, question.slice(0, images.question_tokens));
    const session = await this.#session(components.front.file);
    return this.#timed("front", () => session.run(feeds));
  }

  /** Features [pieces, tokens, hidden], a few pieces a run: peak memory is set by one batch, whatever the image. */
  async #encode(session, pieces) {
    const { Tensor } = this.ort, [count, ...shape] = pieces.dims, size = shape.reduce((a, b) => a * b, 1);
    const [fixed] = session.inputMetadata[0].shape;  // a number where the graph takes so many and no others
    const parts = [], batch = typeof fixed === "number" ? fixed : this.manifest.images.tile_batch ?? 1;
    for (let start = 0; start < count; start += batch) {
      const end = Math.min(start + batch, count);
      const part = new Tensor("float32", pieces.data.subarray(start * size, end * size), [end - start, ...shape]);
      const made = await this.#timed("encoder", () => session.run({ [session.inputNames[0]]: part }));
      parts.push(made[session.outputNames[0]]);
    }
    return parts.length ? concatenate(Tensor, parts) : undefined;
  }

  /** Session of an encoder; another one is let go first. */
  async #encoder(name, [, , height, width]) {
    const { images, components, encoders } = this.manifest;
    const fixed = components[`vision_${name}_${height}x${width}`];  // where images have one of a few grids
    const file = images.grids.length ? fixed.file : encoders[name];
    if (!file) throw new Error(`the package has no encoder ${name}; it has ${Object.keys(encoders).join(", ")}`);
    if (this.encoder !== null && this.encoder !== file) {
      await (await this.sessions.get(this.encoder)).release();
      this.sessions.delete(this.encoder);
    }
    this.encoder = file;
    return this.#session(file);
  }

  #session(file) {
    if (!this.sessions.has(file)) this.sessions.set(file, this.#timed("open", () => this.#open(file)));
    return this.sessions.get(file);
  }

  /** Open one graph with the files of weights that it names, which onnxruntime-web must be handed. */
  async #open(file) {
    const graph = new Uint8Array(await (await get(new URL(file, this.address))).arrayBuffer());
    const text = new TextDecoder("latin1").decode(graph);  // in which a name stands after its length
    const isNamed = name => name.endsWith(".data") && text.includes(String.fromCharCode(name.length) + name);
    const names = Object.keys(this.manifest.files).filter(isNamed);
    const externalData = await Promise.all(names.map(async path => (
      { path, data: new Uint8Array(await (await get(new URL(path, this.address))).arrayBuffer()) }
    )));
    return this.ort.InferenceSession.create(graph, { executionProviders: ["wasm"], externalData });
  }

  async #timed(step, work) {
    const start = performance.now();
    try {
      return await work();
    } finally {
      this.times[step] = (this.times[step] ?? 0) + performance.now() - start;
    }
  }
}

/**
 * The policy's encoder: of the first rule whose conditions all hold, else the default.
 *
 * @param policy of hvlc.json
 * @param images figures `{ visual_tokens, pieces, pixels, aspect, scale }` of the request's images
 * @param stated `{ task_tag, device_class, latency_ms }`; a condition about what is absent does not hold
 */
export function chooseEncoder(policy, images, stated = {}) {
  const holds = rule => {
    const { encoder, task_tag: tag, device_class: device, fits_latency: fits } = rule;
    if (tag !== undefined && tag !== stated.task_tag) return false;
    if (device !== undefined && device !== stated.device_class) return false;
    // Written so that a comparison with what is absent is false.
    if (fits && !(policy.milliseconds_per_piece[encoder] * images.pieces <= stated.latency_ms)) return false;
    return ["visual_tokens", "pixels", "aspect", "scale"].every(name => (
      images[name] > (rule[`above_${name}`] ?? -Infinity) && images[name] < (rule[`below_${name}`] ?? Infinity)
    ));
  };
  return policy.rules.find(holds)?.encoder ?? policy.default;
}

const int64 = (Tensor, numbers) => new Tensor("int64", BigInt64Array.from(numbers, BigInt), [numbers.length]);

function concatenate(Tensor, parts) {
  const [, ...shape] = parts[0].dims, data = new Float32Array(parts.reduce((sum, { size }) => sum + size, 0));
  let at = 0;
  for (const part of parts) {
    data.set(part.data, at);
    at += part.size;
  }
  return new Tensor("float32", data, [parts.reduce((sum, { dims }) => sum + dims[0], 0), ...shape]);
}

async function get(address) {
  const answer = await fetch(address);
  if (!answer.ok) throw new Error(`${address}: ${answer.status}`);
  return answer;
}
