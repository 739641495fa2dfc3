# frozen_string_literal: true

require 'digest'
require 'fileutils'
require 'open3'
require 'tmpdir'
require 'yaml'

# Reads a release directory and writes the tarball of it, as `bosh create-release` does:
# the same files, fingerprints (version 2) and archives. The same input gives the same
# bytes: times, owners and order in the archives are fixed.
module BoshRelease
  class Error < StandardError; end

  # Digests in BOSH's notation: SHA-1 is bare, SHA-256 has a prefix.
  class Digests
    def initialize(sha2) = @sha2 = sha2
    def file(path) = notation(@sha2 ? Digest::SHA256.file(path) : Digest::SHA1.file(path))
    def text(text) = notation(@sha2 ? Digest::SHA256.new.update(text) : Digest::SHA1.new.update(text))

    private

    def notation(digest) = "#{'sha256:' if @sha2}#{digest.hexdigest}"
  end

  # A file of an archive: where it is, its name in the archive, and whether its mode is
  # part of the fingerprint.
  Entry = Struct.new(:path, :name, :mode_counts) do
    def executable? = File.stat(path).mode.anybits?(0o111)
    def link? = File.symlink?(path)
  end

  # What becomes one archive: a job, a package or the licence.
  Resource = Struct.new(:name, :entries, :dependencies, :packages, :follow_links) do
    def fingerprint(digests)
      chunks = entries.sort_by { |entry| entry.name.b }.map { |entry| chunk(entry, digests) }
      digests.text("v2#{chunks.join}#{dependencies.sort.join(',')}").delete_prefix('sha256:')
    end

    # Writes the archive.
    def archive(file)
      Dir.mktmpdir('bosh-release') do |staging|
        entries.each { |entry| stage(entry, File.join(staging, entry.name)) }
        BoshRelease.tar(file, staging, ['.'], level: 6)
      end
    end

    private

    def chunk(entry, digests)
      kept = entry.link? && !follow_links
      content = kept ? digests.text(File.readlink(entry.path)) : digests.file(entry.path)
      mode = kept ? 'symlink' : "100#{entry.executable? ? '755' : '644'}"
      "#{entry.name}#{content}#{mode if entry.mode_counts}"
    end

    def stage(entry, target)
      FileUtils.mkdir_p(File.dirname(target))
      return File.symlink(File.readlink(entry.path), target) if entry.link? && !follow_links

      FileUtils.cp(entry.path, target)
      File.chmod(entry.executable? ? 0o755 : 0o644, target)
    end
  end

  module_function

  # A gzipped tar archive of names below a directory.
  def tar(file, directory, names, level:)
    pack(file, directory, names, ['gzip', "-n#{level}"])
  end

  # The same bytes for the same content: whoever runs it, whenever, with any umask.
  def pack(file, directory, names, compressor)
    command = ['tar', '-C', directory, '--sort=name', '--format=gnu', '--mtime=@0', '--owner=0', '--group=0',
               '--numeric-owner', '--mode=u=rwX,go=rX', '-cf', '-', *names]
    results = Open3.pipeline(command, compressor, out: file)
    raise Error, "cannot write #{file}" unless results.all?(&:success?)
  end

  # The release in a directory: jobs, packages, licence.
  class Directory
    attr_reader :root

    def initialize(root) = @root = File.expand_path(root)

    def name = read_yaml('config/final.yml').fetch('name')
    def jobs = names('jobs').map { |name| job(name) }
    def packages = names('packages').map { |name| package(name) }

    # Path below blobs/ to size and digest.
    def blobs = read_yaml('config/blobs.yml') || {}

    def licence
      entries = Dir.glob('{LICENSE,NOTICE}*', base: @root).sort
      Resource.new('license', entries.map { |name| Entry.new(path(name), name, false) }, [], [], false)
    end

    def job(name)
      spec = spec('jobs', name, %w[name templates packages])
      directory = path('jobs', name)
      files = { 'job.MF' => 'spec' }
      %w[monit properties_schema.json].each { |file| files[file] = file if File.exist?("#{directory}/#{file}") }
      spec['templates'].each_key { |template| files["templates/#{template}"] = "templates/#{template}" }
      entries = files.map { |archived, file| Entry.new(existing("#{directory}/#{file}"), archived, true) }
      Resource.new(name, entries, [], spec['packages'], true)
    end

    def package(name)
      spec = spec('packages', name, %w[name])
      entries = [Entry.new(existing(path('packages', name, 'packaging')), 'packaging', false)]
      entries += spec.fetch('files', []).flat_map { |pattern| matches(name, pattern) }.uniq(&:name)
      Resource.new(name, entries, spec.fetch('dependencies', nil) || [], [], false)
    end

    # Checks that what a spec names exists in the release.
    def check
      known = names('packages')
      (jobs + packages).each do |resource|
        missing = (resource.dependencies + resource.packages) - known
        raise Error, "#{resource.name}: there is no package #{missing.join(', ')}" unless missing.empty?
      end
    end

    private

    def path(*parts) = File.join(@root, *parts)
    def names(kind) = Dir.children(path(kind)).sort
    def read_yaml(file) = YAML.safe_load_file(existing(path(file)))

    def existing(file)
      raise Error, "#{file} is missing" unless File.exist?(file)

      file
    end

    def spec(kind, name, keys)
      file = path(kind, name, 'spec')
      spec = YAML.safe_load_file(existing(file))
      missing = keys.reject { |key| spec.key?(key) }
      raise Error, "#{file}: there is no #{missing.join(', ')}" unless missing.empty?
      raise Error, "#{file}: the name is #{spec['name']}, the directory is #{name}" unless spec['name'] == name

      spec
    end

    # The files of src/ and blobs/ that match a pattern; `*` matches a leading dot too.
    def matches(package, pattern)
      found = %w[src blobs].flat_map do |directory|
        base = path(directory)
        names = Dir.glob(pattern, File::FNM_DOTMATCH, base: base).sort
        names.reject { |name| File.directory?(File.join(base, name)) && !File.symlink?(File.join(base, name)) }
             .map { |name| Entry.new(File.join(base, name), name, true) }
      end
      raise Error, "package #{package}: no file of src/ or blobs/ matches #{pattern}" if found.empty?

      found
    end
  end

  # Writes the tarball of a release directory.
  class Writer
    def initialize(directory, version:, commit:, uncommitted:, sha2: false)
      @directory = directory
      @head = { 'name' => directory.name, 'version' => version,
                'commit_hash' => commit, 'uncommitted_changes' => uncommitted }
      @digests = Digests.new(sha2)
    end

    # Writes the tarball and returns the manifest in it.
    def write(file)
      @directory.check
      Dir.mktmpdir('bosh-release') do |staging|
        %w[jobs packages].each { |kind| Dir.mkdir("#{staging}/#{kind}") }
        manifest = @head.merge('jobs' => jobs(staging), 'packages' => packages(staging),
                               'license' => licence(staging)).compact
        File.write("#{staging}/release.MF", YAML.dump(manifest))
        names = %w[release.MF jobs packages] + Dir.glob('{license.tgz,LICENSE*,NOTICE*}', base: staging).sort
        BoshRelease.tar(file, staging, names, level: 1)
        manifest
      end
    end

    private

    def jobs(staging)
      @directory.jobs.map { |job| reference(job, "#{staging}/jobs").merge('packages' => job.packages) }
    end

    def packages(staging)
      @directory.packages.map do |package|
        reference(package, "#{staging}/packages").merge('dependencies' => package.dependencies)
      end
    end

    def licence(staging)
      licence = @directory.licence
      return if licence.entries.empty?

      licence.entries.each { |entry| FileUtils.cp(entry.path, staging) }
      reference(licence, staging).except('name')
    end

    def reference(resource, directory)
      file = "#{directory}/#{resource.name}.tgz"
      resource.archive(file)
      fingerprint = resource.fingerprint(@digests)
      { 'name' => resource.name, 'version' => fingerprint, 'fingerprint' => fingerprint,
        'sha1' => @digests.file(file) }
    end
  end
end
