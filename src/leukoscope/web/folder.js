// Folders that are dropped: their files in one zip, not compressed, so that their paths tell the subjects.
const CRC = Uint32Array.from({length: 256}, (_, one) => {
  for (let bit = 0; bit < 8; bit++) one = one & 1 ? (one >>> 1) ^ 0xedb88320 : one >>> 1
  return one
})
const crc32 = (bytes) => ~bytes.reduce((sum, byte) => CRC[(sum ^ byte) & 255] ^ (sum >>> 8), -1) >>> 0
const little = (size) => (...values) =>
  Uint8Array.from(values.flatMap((value) => Array.from({length: size}, (_, i) => (value / 2 ** (8 * i)) & 255)))
const [two, four] = [little(2), little(4)]
const filesIn = async (entry) => {
  if (entry.isFile) return new Promise((done, fail) => entry.file((file) => done([[entry.fullPath, file]]), fail))
  const reader = entry.createReader()
  const children = []
  // A browser names some entries of a folder at a time, and none at its end.
  while (true) {
    const entries = await new Promise((done, fail) => reader.readEntries(done, fail))
    if (!entries.length) break
    children.push(...entries)
  }
  return (await Promise.all(children.map(filesIn))).flat()
}
const zipped = async (entries) => {
  const files = (await Promise.all(entries.map(filesIn))).flat()
  const parts = []
  const directory = []
  const length = (list) => list.reduce((sum, part) => sum + part.length, 0)
  let at = 0
  for (const [path, file] of files) {
    const bytes = new Uint8Array(await file.arrayBuffer())
    const name = new TextEncoder().encode(path.slice(1))
    // Version, names in UTF-8, stored, 1980-01-01.
    const about = [two(20, 0x800, 0, 0, 33), four(crc32(bytes), bytes.length, bytes.length), two(name.length, 0)]
    const entry = [four(0x04034b50), ...about, name, bytes]
    directory.push(four(0x02014b50), two(20), ...about, two(0, 0, 0), four(0, at), name)
    parts.push(...entry)
    at += length(entry)
  }
  const end = [four(0x06054b50), two(0, 0, files.length, files.length), four(length(directory), at), two(0)]
  return new File([...parts, ...directory, ...end], `${entries[0].name}.zip`)
}
