// Through a Blob, because browsers refuse to save long data: addresses.
(file) => {
  if (!file || !file.name) return
  const bytes = Uint8Array.from(atob(file.content), (letter) => letter.charCodeAt(0))
  const link = document.createElement('a')
  link.href = URL.createObjectURL(new Blob([bytes], {type: file.kind}))
  link.download = file.name
  document.body.append(link)
  link.click()
  link.remove()
  setTimeout(() => URL.revokeObjectURL(link.href), 60000)
}
