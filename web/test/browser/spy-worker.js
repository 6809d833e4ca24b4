// The package's worker, with its GPU device and what it reads while it computes within reach of the tests.

const { requestDevice } = GPUAdapter.prototype;
GPUAdapter.prototype.requestDevice = async function (descriptor) {
  self.testDevice = await requestDevice.call(this, descriptor);
  return self.testDevice;
};

self.bytesRead = 0;
const { readAsArrayBuffer } = FileReaderSync.prototype;
FileReaderSync.prototype.readAsArrayBuffer = function (file) {
  self.bytesRead += file.size;
  return readAsArrayBuffer.call(this, file);
};

// Messages that arrive while the module loads would be lost.
const early = [];
const keep = (event) => early.push(event);
self.addEventListener('message', keep);
await import('/dist/worker.js');
self.removeEventListener('message', keep);
for (const { data, ports } of early)
  self.dispatchEvent(new MessageEvent('message', { data, ports }));
