// Runs recordings (cargo run --example record -- FOLDER) on Dawn and compares what comes out: node run.mjs FOLDER
import { readdirSync, readFileSync } from "node:fs";
import { create, globals } from "webgpu";

Object.assign(globalThis, globals);
const folder = process.argv[2];
if (!folder) {
  console.error("node run.mjs FOLDER");
  process.exit(2);
}
const gpu = create(["backend=vulkan"]);
const adapter = await gpu.requestAdapter();
if (!adapter) {
  console.error("Dawn finds no adapter (on a CPU it wants Mesa 25 or later)");
  process.exit(1);
}
console.log(`Dawn on ${adapter.info.description || adapter.info.device || adapter.info.vendor}`);
const device = await adapter.requestDevice();
let failures = 0;
device.addEventListener("uncapturederror", (event) => {
  console.error(event.error.message);
  failures += 1;
});

const { STORAGE, UNIFORM, COPY_SRC, COPY_DST, MAP_READ } = GPUBufferUsage;

function filled(words, usage) {
  const contents = new Uint32Array(words.length > 0 ? words : [0, 0, 0, 0]);
  const buffer = device.createBuffer({ size: contents.byteLength, usage: usage | COPY_DST });
  device.queue.writeBuffer(buffer, 0, contents);
  return buffer;
}

const zeros = (words) => device.createBuffer({ size: 4 * Math.max(words, 4), usage: STORAGE | COPY_SRC });

async function read(buffer, words) {
  const staging = device.createBuffer({ size: buffer.size, usage: MAP_READ | COPY_DST });
  const encoder = device.createCommandEncoder();
  encoder.copyBufferToBuffer(buffer, 0, staging, 0, buffer.size);
  device.queue.submit([encoder.finish()]);
  await staging.mapAsync(GPUMapMode.READ);
  return new Uint32Array(staging.getMappedRange().slice(0)).subarray(0, words);
}

async function run(recorded) {
  const entry = (binding, type, hasDynamicOffset = false) => ({
    binding,
    visibility: GPUShaderStage.COMPUTE,
    buffer: { type, hasDynamicOffset },
  });
  const layout = device.createBindGroupLayout({
    entries: [
      entry(0, "uniform", true),
      ...[1, 2, 3].map((binding) => entry(binding, "read-only-storage")),
      ...[4, 5, 6, 7].map((binding) => entry(binding, "storage")),
    ],
  });
  const module = device.createShaderModule({ code: recorded.source });
  for (const message of (await module.getCompilationInfo()).messages) {
    console.error(`${recorded.name}: ${message.lineNum}: ${message.message}`);
  }
  const pipelines = {};
  for (const [name] of recorded.dispatches) {
    pipelines[name] ??= device.createComputePipeline({
      layout: device.createPipelineLayout({ bindGroupLayouts: [layout] }),
      compute: { module, entryPoint: name },
    });
  }
  const stride = 256;
  const uniforms = new Uint32Array((stride / 4) * recorded.windows.length);
  recorded.windows.forEach((words, index) => uniforms.set(words, (stride / 4) * index));
  const output = zeros(recorded.output);
  const faults = zeros(recorded.faults);
  const windows = filled(uniforms, UNIFORM);
  const buffers = [
    filled(recorded.payload, STORAGE),
    filled(recorded.table, STORAGE),
    filled(recorded.data, STORAGE),
    zeros(recorded.scratch),
    zeros(recorded.states),
    output,
    faults,
  ];
  const group = device.createBindGroup({
    layout,
    entries: [
      { binding: 0, resource: { buffer: windows, size: 4 * recorded.windows[0].length } },
      ...buffers.map((buffer, index) => ({ binding: index + 1, resource: { buffer } })),
    ],
  });
  const encoder = device.createCommandEncoder();
  for (const [name, window, [x, y, z]] of recorded.dispatches) {
    const pass = encoder.beginComputePass();
    pass.setPipeline(pipelines[name]);
    pass.setBindGroup(0, group, [stride * window]);
    pass.dispatchWorkgroups(x, y, z);
    pass.end();
  }
  device.queue.submit([encoder.finish()]);
  const [found, wrong] = [await read(output, recorded.output), await read(faults, recorded.faults)];
  const different = recorded.expected.findIndex((word, index) => word !== found[index]);
  if (wrong.some((word) => word !== 0) || different >= 0 || recorded.expected.length !== found.length) {
    console.error(`${recorded.name}: differs at word ${different}, faults ${wrong}`);
    failures += 1;
  }
}

const files = readdirSync(folder).filter((name) => name.endsWith(".json")).sort();
for (const file of files) {
  await run(JSON.parse(readFileSync(`${folder}/${file}`, "utf8")));
}
console.log(`${files.length} recordings, ${failures} failures`);
device.destroy();
process.exit(failures === 0 && files.length > 0 ? 0 : 1);
