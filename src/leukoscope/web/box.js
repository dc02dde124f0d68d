// For the strip: takes what is chosen, pasted or dropped anywhere, and asks whether the server is there.
// On a phone, picture and answer stand below each other: a new question begins at the picture.
window.lkToPicture = () => {
  if (innerWidth <= 820) document.querySelector('#stage')?.scrollIntoView()
}
// Until the server has read a file, neither the old picture nor its answer stands there.
let lastGiven = []
const hide = (files) => {
  lastGiven = [...files]
  const name = files.length === 1 ? files[0].name : `${files.length} files`
  document.querySelector('#picture').dataset.given = `Reading ${name} …`
  window.lkToPicture()
  dispatchEvent(new Event('lkgiven'))
  document.body.dataset.lkGiven = '1'
  for (const tile of document.querySelectorAll('.lk-tile[aria-pressed="true"]')) tile.ariaPressed = 'false'
  window.lkTab?.('cell')
}
const show = () => {
  delete document.body.dataset.lkGiven
}
const give = async (list) => {
  const transfer = new DataTransfer()
  for (const file of await list) transfer.items.add(file)
  if (!transfer.files.length) return
  hide(transfer.files)
  // The box has no place for a file while it sends another.
  const input = () => document.querySelector('#upload input[type=file]')
  while (!input()) await new Promise((done) => setTimeout(done, 50))
  input().files = transfer.files
  input().dispatchEvent(new Event('change', {bubbles: true}))
}
// The files of a batch that was stopped: the server has deleted them, the page can send them again.
window.lkGiveAgain = () => {
  if (lastGiven.length) give(lastGiven)
  else document.querySelector('#upload input[type=file]')?.click()
}
// Chosen by the file dialog.
document.addEventListener('change', (event) => {
  if (event.target.matches('#upload input[type=file]') && event.target.files.length) hide(event.target.files)
}, true)
// Beside the box, the browser would leave the page for the file.
document.addEventListener('dragover', (event) => event.preventDefault())
document.addEventListener('drop', (event) => {
  if (!event.dataTransfer?.files.length) return
  event.preventDefault()
  event.stopPropagation()
  const entries = [...event.dataTransfer.items].map((item) => item.webkitGetAsEntry?.()).filter(Boolean)
  const isFolder = entries.some((entry) => entry.isDirectory)
  give(isFolder ? zipped(entries).then((file) => [file]) : [...event.dataTransfer.files])
}, true)
document.addEventListener('paste', (event) => {
  if (!event.target.closest('input, textarea') && event.clipboardData.files.length) give([...event.clipboardData.files])
})
// The tile of what is shown is in sight; the page itself does not scroll to it.
const showTile = () => {
  const tile = element.querySelector('.lk-tiles [aria-pressed="true"]')
  if (!tile) return
  // On a phone the tiles scroll by themselves, below the place of one's own file.
  const shelf = tile.closest('.lk-shelf')
  const strip = getComputedStyle(shelf).display === 'contents' ? tile.closest('.lk-tiles') : shelf
  const around = strip.getBoundingClientRect()
  const box = tile.getBoundingClientRect()
  if (box.left < around.left) strip.scrollLeft += box.left - around.left
  if (box.right > around.right) strip.scrollLeft += box.right - around.right
}
watch('value', () => setTimeout(showTile))
setInterval(() => fetch('healthz', {cache: 'no-store'}).then(
  () => {
    delete document.body.dataset.lkLost
  },
  () => {
    show()
    document.body.dataset.lkLost = '1'
    sessionStorage.lkLost = '1'
  },
), 4000)
// What scrolls by itself is reached by keyboard. A file that Gradio refuses to send never reaches the server.
new MutationObserver(() => {
  document.querySelectorAll('#card :is(pre, table), .lk-call pre').forEach((wide) => {
    wide.tabIndex = 0
  })
  if (document.querySelector('.toast-body.error')) show()
}).observe(document.body, {subtree: true, childList: true})
